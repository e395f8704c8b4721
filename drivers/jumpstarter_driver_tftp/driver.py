# SPDX-License-Identifier: Apache-2.0
"""A TFTP server for boot files, over a folder that clients fill."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import export
from jumpstarter.driver.session_server import SessionServer
from jumpstarter_driver_opendal.storage import Opendal
from jumpstarter_driver_tftp.packets import MAX_BLKSIZE, MIN_BLKSIZE, Limits
from jumpstarter_driver_tftp.server import Settings, TftpServer

__all__ = ["ServerNotRunning", "Tftp", "TftpError"]


class TftpError(Exception):
    """A failure of the TFTP server."""


class ServerNotRunning(TftpError):
    """It does not run."""


@dataclass(kw_only=True)
class Tftp(SessionServer):
    """Serves a folder by TFTP (RFC 1350, with blksize, tsize, timeout and windowsize). Its child ``storage``
    (`Opendal`, scheme ``fs``) puts files there.

    root_dir: the folder; made when it is needed.
    host: the address that devices reach it by, told by `get_host`; this host's own by default.
    bind: the address to listen on, ``0.0.0.0`` or ``::`` for all; ``host`` by default.
    port: UDP port, 0 for any free one, which `get_port` tells once it runs. Ports below 1024 need privileges.
    timeout: longest time between two repetitions, seconds. retries: a client that lets so many pass is given up.
    max_blksize, max_windowsize: most a client may ask for.
    allow_write: devices may store files; one that is there is replaced when the new one is complete.
    remove_created_on_close: at the end of the session remove the files that were put there in it.

    It runs from `start` to `stop`, or to the end of the session.
    """

    driver_type = "network"

    root_dir: str = "/var/lib/tftpboot"
    host: str = ""
    bind: str | None = None
    port: int = 69
    timeout: float = 5.0
    retries: int = 5
    max_blksize: int = MAX_BLKSIZE
    max_windowsize: int = 64
    allow_write: bool = False
    remove_created_on_close: bool = True

    storage: Opendal = field(init=False, repr=False)
    _server: TftpServer | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.port <= 65535:
            raise ConfigurationError(f"field port: {self.port} is no UDP port (0 to 65535)")
        if not 0 < self.timeout <= 255:
            raise ConfigurationError(f"field timeout: {self.timeout:g} is not between 0 and 255 seconds")
        if self.retries < 1:
            raise ConfigurationError(f"field retries: {self.retries} must be at least 1")
        if not MIN_BLKSIZE <= self.max_blksize <= MAX_BLKSIZE:
            raise ConfigurationError(f"field max_blksize: {self.max_blksize} is not {MIN_BLKSIZE} to {MAX_BLKSIZE}")
        if not 1 <= self.max_windowsize <= 1024:
            raise ConfigurationError(f"field max_windowsize: {self.max_windowsize} is not 1 to 1024")
        self.storage = Opendal(
            scheme="fs", kwargs={"root": self.root_dir}, remove_created_on_close=self.remove_created_on_close
        )
        self.children["storage"] = self.storage

    @classmethod
    def client(cls) -> str:
        """Import path of the client class."""
        return "jumpstarter_driver_tftp.client.TftpServerClient"

    @property
    def _runs(self) -> bool:
        return self._server is not None

    def _start(self) -> None:
        bind = self._bind_address()
        settings = Settings(
            timeout=self.timeout, retries=self.retries, allow_write=self.allow_write,
            limits=Limits(self.max_blksize, self.max_windowsize),
        )  # fmt: skip
        server = TftpServer(self.storage.files, bind, self.port, settings, self.logger)
        try:
            server.start()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            hint = "" if self.bind else "; field bind: names the address of this host to listen on"
            raise type(error)(error.errno, f"cannot listen on {bind} UDP port {self.port}: {reason}{hint}") from None
        self._server = server
        self.logger.info("serving %s at %s UDP port %d", self.root_dir, *server.address)

    def _stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    @export(readonly=True)
    def get_port(self) -> int:
        """Its port; the configured one while it does not run (0: any)."""
        server = self._server
        return server.address[1] if server is not None else self.port

    @export(readonly=True)
    def status(self) -> dict[str, Any]:
        """``running``, ``host``, ``port`` and ``bind`` (the address listened on)."""
        server = self._server
        return {
            "running": server is not None,
            "host": self.get_host(),
            "port": self.get_port(),
            "bind": server.address[0] if server is not None else self._bind_address(),
        }
