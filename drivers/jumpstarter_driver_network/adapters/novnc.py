# SPDX-License-Identifier: Apache-2.0
"""A driver's VNC stream in a web browser."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from jumpstarter.client import adapters
from jumpstarter_driver_network.novnc import find_novnc, serve_novnc

if TYPE_CHECKING:
    from jumpstarter.client import DriverClient

__all__ = ["NovncAdapter"]


class NovncAdapter(adapters.ClientAdapter[str]):
    """Serves noVNC to a browser on this machine; gives the URL to open.

    client, method: the stream on which a VNC server speaks. encrypt: accepted and not used; what it asked noVNC's web
    site to do has no meaning here, where neither the page nor the connection leaves this machine. folder: noVNC's
    directory, where it is not at one of the usual places.

    The URL is a secret: who has it sees and controls the screen, from this machine. See `jumpstarter.client.local_web`.

    Raises FileNotFoundError, with the command that installs it, when noVNC is not here.
    """

    def __init__(
        self,
        client: DriverClient,
        method: str = "connect",
        encrypt: bool = True,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(client=client)
        self.method = method
        self.encrypt = encrypt
        self.folder = folder

    def _open(self, stack: ExitStack) -> str:
        files = find_novnc(self.folder)
        client, method = self.client, self.method
        listener = adapters.listen_tcp("127.0.0.1", 0)
        stack.callback(listener.close)
        what = self._what("a noVNC page")
        served = serve_novnc(files, listener, lambda: client.stream_async(method), what)
        return stack.enter_context(client.portal.wrap_async_context_manager(served))
