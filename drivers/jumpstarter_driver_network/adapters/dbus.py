# SPDX-License-Identifier: Apache-2.0
"""The exporter's message bus in place of this machine's."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from jumpstarter.client import adapters

if TYPE_CHECKING:
    from jumpstarter_driver_network.client import DbusNetworkClient

__all__ = ["DbusAdapter"]


class DbusAdapter(adapters.ClientAdapter[str]):
    """Makes DBUS_SYSTEM_BUS_ADDRESS or DBUS_SESSION_BUS_ADDRESS of this process lead to the exporter's bus.

    Gives the address. It is a unix socket that only this user can reach: whoever connects acts as the exporter's user,
    which a TCP port would allow to everybody on this machine.
    """

    def __init__(self, client: DbusNetworkClient, method: str = "connect") -> None:
        super().__init__(client=client)
        self.method = method

    def _open(self, stack: ExitStack) -> str:
        kind = self.client.labels["jumpstarter.dev/dbusnetwork/kind"]
        path = stack.enter_context(adapters.UnixPortforwardAdapter(client=self.client, method=self.method))
        address = f"unix:path={path}"
        variable = f"DBUS_{kind.upper()}_BUS_ADDRESS"
        stack.callback(_restore, variable, os.environ.get(variable))
        os.environ[variable] = address
        return address


def _restore(variable: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(variable, None)
    else:
        os.environ[variable] = value
