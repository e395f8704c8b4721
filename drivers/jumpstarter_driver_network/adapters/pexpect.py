# SPDX-License-Identifier: Apache-2.0
"""pexpect on a driver's stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jumpstarter.client import adapters

if TYPE_CHECKING:
    from jumpstarter.client import DriverClient

__all__ = ["PexpectAdapter"]


class PexpectAdapter(adapters.PexpectAdapter):
    """Gives a `pexpect.fdpexpect.fdspawn` joined to the driver's stream by a socket pair."""

    def __init__(self, client: DriverClient, method: str = "connect") -> None:
        super().__init__(client=client, method=method)
