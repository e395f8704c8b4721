# SPDX-License-Identifier: Apache-2.0
"""Local TCP ports and unix sockets that lead to a driver's stream."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from jumpstarter.client import adapters

if TYPE_CHECKING:
    from jumpstarter.client import DriverClient

__all__ = ["TcpPortforwardAdapter", "UnixPortforwardAdapter"]


class TcpPortforwardAdapter(adapters.PortforwardAdapter):
    """Listen on a local TCP port, 127.0.0.1 and any free port by default. Gives (host, port)."""

    def __init__(
        self, client: DriverClient, method: str = "connect", local_host: str = "127.0.0.1", local_port: int = 0
    ) -> None:
        super().__init__(client=client, method=method, local_host=local_host, local_port=local_port)


class UnixPortforwardAdapter(adapters.UnixPortforwardAdapter):
    """Listen on a unix socket (mode 0600), in a temporary folder (mode 0700) unless a path is given. Gives the path."""

    def __init__(
        self, client: DriverClient, method: str = "connect", path: str | os.PathLike[str] | None = None
    ) -> None:
        super().__init__(client=client, method=method, path=path)
