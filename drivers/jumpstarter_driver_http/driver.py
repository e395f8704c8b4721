# SPDX-License-Identifier: Apache-2.0
"""A HTTP server for images and boot files, over a folder that clients fill."""

from __future__ import annotations

import secrets
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.common.ipaddr import url_host
from jumpstarter.driver import export
from jumpstarter.driver.background import BackgroundLoop
from jumpstarter.driver.secret import check_secret, read_secret
from jumpstarter.driver.session_server import SessionServer
from jumpstarter_driver_opendal.storage import Opendal

if TYPE_CHECKING:
    import ssl

    from jumpstarter_driver_http.serving import Credentials, FileServer

__all__ = ["HttpServer"]

_START = 30.0
_BACKLOG = 128


@dataclass(kw_only=True)
class HttpServer(SessionServer):
    """Serves a folder to the device. Its child ``storage`` (`Opendal`, scheme ``fs``) puts files there.

    root_dir: the folder; made when it is needed.
    host: the address that devices reach it by, told by `get_host` and `get_url`; this host's own by default.
    bind: the address to listen on, ``0.0.0.0`` or ``::`` for all; ``host`` by default.
    port: TCP port, 0 for any free one, which `get_port` tells once it runs.
    timeout: seconds a client may stay without taking data.
    remove_created_on_close: at the end of the session remove the files that were put there in it.
    tls_cert, tls_key: PEM files; with them it speaks https only.
    username, password (or password_file, read when it starts): what every request must carry (HTTP basic).
    session_password: instead, a new password for each start, which `get_credentials` tells the client.

    It runs from `start` to `stop`, or to the end of the session.
    """

    driver_type = "network"
    needs: ClassVar[tuple[str, ...]] = ("aiohttp",)

    root_dir: str = "/var/www"
    host: str | None = None
    bind: str | None = None
    port: int = 8080
    timeout: float = 600
    remove_created_on_close: bool = True
    tls_cert: str | None = None
    tls_key: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: str | None = None
    session_password: bool = False

    storage: Opendal = field(init=False, repr=False)
    _loop: BackgroundLoop | None = field(init=False, repr=False, default=None)
    _server: FileServer | None = field(init=False, repr=False, default=None)
    _credentials: Credentials | None = field(init=False, repr=False, default=None)
    _bound: tuple[str, int] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.port <= 65535:
            raise ConfigurationError(f"field port: {self.port} is no TCP port (0 to 65535)")
        if self.timeout <= 0:
            raise ConfigurationError(f"field timeout: {self.timeout:g} must be more than 0 seconds")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigurationError("fields tls_cert and tls_key: give both or none")
        check_secret("password", self.password, self.password_file)
        fixed = self.password is not None or self.password_file is not None
        if self.session_password and fixed:
            raise ConfigurationError("field session_password: cannot be used together with a password")
        if self.username is not None and not (fixed or self.session_password):
            raise ConfigurationError("field username: needs password, password_file or session_password")
        if fixed and self.username is None:
            raise ConfigurationError("field username: is required with a password")
        if self.username is not None and ":" in self.username:
            raise ConfigurationError("field username: must not contain a colon (RFC 7617)")
        for name in ("tls_cert", "tls_key"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise ConfigurationError(f"field {name}: {path} is no file")
        self.storage = Opendal(
            scheme="fs", kwargs={"root": self.root_dir}, remove_created_on_close=self.remove_created_on_close
        )
        self.children["storage"] = self.storage

    @classmethod
    def client(cls) -> str:
        """Import path of the client class."""
        return "jumpstarter_driver_http.client.HttpServerClient"

    @property
    def _runs(self) -> bool:
        return self._loop is not None

    def _start(self) -> None:
        tls = self._tls()
        credentials = self._new_credentials()
        listener = self._listen()
        try:
            from jumpstarter_driver_http.serving import FileServer

            loop = BackgroundLoop("http-server")
            try:
                server = FileServer(
                    self.storage.files.beneath, timeout=self.timeout, credentials=credentials, logger=self.logger
                )
                loop.run(lambda: server.start(listener, tls), _START)
            except BaseException:
                loop.stop()
                raise
        except BaseException:
            listener.close()
            raise
        self._bound = listener.getsockname()[:2]
        self._loop, self._server, self._credentials = loop, server, credentials
        self.logger.info("serving %s at %s (listening on %s port %d)", self.root_dir, self.get_url(), *self._bound)

    def _stop(self) -> None:
        loop, server = self._loop, self._server
        self._loop = self._server = self._credentials = self._bound = None
        if loop is None or server is None:
            return
        try:
            loop.run(server.stop, _START)
        finally:
            loop.stop()

    @export(readonly=True)
    def get_port(self) -> int:
        """Its port; the configured one while it does not run (0: any)."""
        return self._bound[1] if self._bound is not None else self.port

    @export(readonly=True)
    def get_url(self) -> str:
        """Address of its root, without a slash at the end."""
        scheme = "https" if self.tls_cert is not None else "http"
        return f"{scheme}://{url_host(self.get_host())}:{self.get_port()}"

    @export(readonly=True)
    def status(self) -> dict[str, Any]:
        """``running``, ``host``, ``port``, ``url`` (None while it does not run), ``bind`` (the address listened on)."""
        bound = self._bound
        return {
            "running": bound is not None,
            "host": self.get_host(),
            "port": self.get_port(),
            "url": self.get_url() if bound is not None else None,
            "bind": bound[0] if bound is not None else self._bind_address(),
        }

    @export
    def get_credentials(self) -> dict[str, str] | None:
        """``username`` and ``password`` that requests must carry; None when anybody may download, or nothing runs."""
        if self._credentials is None:
            return None
        return {"username": self._credentials.username, "password": self._credentials.password}

    def _listen(self) -> socket.socket:
        bind = self._bind_address()
        try:
            family, kind, proto, _, address = socket.getaddrinfo(
                bind, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = socket.socket(family, kind, proto)
            try:
                # an address in TIME_WAIT may be used again; without SO_REUSEPORT nobody can share it
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
                listener.listen(_BACKLOG)
            except BaseException:
                listener.close()
                raise
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            hint = "" if self.bind else "; field bind: names the address of this host to listen on"
            raise type(error)(error.errno, f"cannot listen on {bind} port {self.port}: {reason}{hint}") from None
        listener.setblocking(False)
        return listener

    def _tls(self) -> ssl.SSLContext | None:
        if self.tls_cert is None:
            return None
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.tls_cert, self.tls_key)
        except OSError as error:  # an SSLError is one
            raise ValueError(f"tls_cert {self.tls_cert} with tls_key {self.tls_key}: {error}") from None
        return context

    def _new_credentials(self) -> Credentials | None:
        from jumpstarter_driver_http.serving import Credentials

        if self.session_password:
            return Credentials(self.username or "jumpstarter", secrets.token_urlsafe(24))
        if self.username is None:
            return None
        password = read_secret("password", self.password, self.password_file)
        assert password is not None
        return Credentials(self.username, password)
