# SPDX-License-Identifier: Apache-2.0
"""Serial ports, and everything else that pyserial or a socket can pass off as one."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import export
from jumpstarter_driver_pyserial.console import ConsoleDriver
from jumpstarter_driver_pyserial.ports import (
    FdPort,
    ListenFactory,
    Port,
    PortFactory,
    SocketFactory,
    ThreadPort,
    call_in_thread,
)

if TYPE_CHECKING:
    import serial

__all__ = ["PySerial"]

_PARITIES = "NEOMS"


@dataclass(kw_only=True)
class PySerial(ConsoleDriver):
    """A serial port.

    url: a terminal ("/dev/ttyUSB0", "/dev/serial/by-id/..."), a pyserial URL ("rfc2217://host:port", "loop://",
    "spy://..."), "socket://host:port", "unix:///path" (connect to a unix socket) or "unix-listen:///path" (be connected
    to by the device, an emulator mostly).
    baudrate, bytesize, parity (N, E, O, M, S), stopbits (1, 1.5, 2), rtscts, xonxoff: the line's settings.
    exclusive: lock the terminal, so that no other program on the exporter can take bytes from it.
    disable_hupcl: do not drop DTR when the port is closed; some boards reset on it.
    check_present: refuse a configuration whose terminal does not exist or may not be used.
    cps, log_size: see `ConsoleDriver`.
    """

    url: str
    baudrate: int = 115200
    disable_hupcl: bool = False
    bytesize: int = 8
    parity: str = "N"
    stopbits: float = 1
    rtscts: bool = False
    xonxoff: bool = False
    exclusive: bool = True

    def __post_init__(self) -> None:
        self.parity = str(self.parity).upper()
        for name, value, good in (
            ("baudrate", self.baudrate, self.baudrate > 0),
            ("bytesize", self.bytesize, self.bytesize in (5, 6, 7, 8)),
            ("parity", self.parity, len(self.parity) == 1 and self.parity in _PARITIES),
            ("stopbits", self.stopbits, self.stopbits in (1, 1.5, 2)),
        ):
            if not good:
                raise ConfigurationError(f"serial port {self.url}: {name} cannot be {value!r}")
        super().__post_init__()
        if self.check_present and "://" not in self.url:
            _check_terminal(self.url)

    def _port_factory(self) -> PortFactory:
        name = f"serial port {self.url}"
        if not self.url:
            raise ConfigurationError("serial port: url is empty")
        scheme, separator, rest = self.url.partition("://")
        if not separator:
            return _SerialFactory(name, self)
        if scheme == "unix":
            return SocketFactory(name, socket.AF_UNIX, rest)
        if scheme == "unix-listen":
            return ListenFactory(name, rest)
        if scheme == "socket":
            host, colon, port = rest.partition("/")[0].rpartition(":")
            if not colon or not port.isdigit():
                raise ConfigurationError(f"{name}: is not socket://host:port")
            return _TcpFactory(name, host.strip("[]"), int(port))
        _check_scheme(scheme, name)
        return _SerialFactory(name, self)

    # --- lines --------------------------------------------------------------------------------------------------

    @export
    async def send_break(self, seconds: float = 0.25) -> None:
        """Send a BREAK of that length."""
        if not 0 < seconds <= 60:
            raise ValueError(f"send_break: seconds is {seconds:g}, must be more than 0 and at most 60")
        await self._ready()
        lines = self.hub.lines()
        begun = asyncio.ensure_future(self._set(lines, "break_condition", True))

        async def end() -> None:
            await asyncio.wait([begun])
            await self._set(lines, "break_condition", False)

        try:
            await asyncio.shield(begun)
            await asyncio.sleep(seconds)
        finally:
            # Also when the caller is gone, whenever that was: a line that stays in BREAK is a dead line.
            await asyncio.shield(asyncio.ensure_future(end()))

    @export
    async def set_dtr(self, state: bool) -> None:
        """Set the DTR line of the open port."""
        await self._ready()
        await self._set(self.hub.lines(), "dtr", state)

    @export
    async def set_rts(self, state: bool) -> None:
        """Set the RTS line of the open port."""
        await self._ready()
        await self._set(self.hub.lines(), "rts", state)

    async def _set(self, lines: Any, name: str, value: bool) -> None:
        try:
            # In a thread: over RFC 2217 it waits for the server's confirmation.
            await asyncio.to_thread(setattr, lines, name, value)
        except OSError as error:
            what = {"break_condition": "BREAK"}.get(name, name.upper())
            if error.errno in (errno.ENOTTY, errno.EINVAL):
                raise NotImplementedError(f"{self.hub.factory.name} has no {what}") from error
            raise OSError(f"{self.hub.factory.name}: cannot set {what}: {error}") from error


class _SerialFactory(PortFactory):
    """Opens a port with pyserial."""

    def __init__(self, name: str, config: PySerial) -> None:
        self.name = name
        self._config = config

    async def open(self) -> Port:
        """Open in a thread: USB adapters and network ports take their time."""
        port = await call_in_thread(self._open, lambda late: late.close())
        try:
            if isinstance(port, _terminal_class()):
                return FdPort(port.fileno(), port.close, lines=port)
            return ThreadPort(port)
        except BaseException:
            port.close()
            raise

    def _open(self) -> serial.SerialBase:
        import serial

        config = self._config
        settings: dict[str, Any] = {
            "baudrate": config.baudrate,
            "bytesize": config.bytesize,
            "parity": config.parity,
            "stopbits": config.stopbits,
            "rtscts": config.rtscts,
            "xonxoff": config.xonxoff,
            "timeout": None,
        }
        try:
            if "://" in config.url:
                return serial.serial_for_url(config.url, **settings)
            port = _terminal_class()(config.url, exclusive=config.exclusive or None, **settings)
            if config.disable_hupcl:
                _disable_hupcl(port.fileno())
        except ValueError as error:
            raise OSError(errno.EINVAL, str(error)) from error
        except serial.SerialException as error:
            raise OSError(error.errno or errno.EIO, _explain(error)) from error
        return port


class _TcpFactory(SocketFactory):
    """Connects to a TCP port, resolving its host anew each time."""

    def __init__(self, name: str, host: str, port: int) -> None:
        super().__init__(name, socket.AF_INET, None)
        self._host, self._port = host, port

    async def open(self) -> Port:
        """Resolve and connect."""
        from jumpstarter.streams.sockets import resolve

        self._family, self._address = (await resolve(self._host, self._port, socket.SOCK_STREAM))[0]
        return await super().open()


@cache
def _terminal_class() -> type[serial.Serial]:
    """pyserial's terminal, made on first use: importing it costs every exporter that has no serial port."""
    import serial

    class Terminal(serial.Serial):
        """Keeps what the device said before the port was opened, which pyserial throws away."""

        def _reset_input_buffer(self) -> None:
            pass

    return Terminal


def _disable_hupcl(fd: int) -> None:
    import termios

    attributes = termios.tcgetattr(fd)
    attributes[2] &= ~termios.HUPCL
    termios.tcsetattr(fd, termios.TCSANOW, attributes)


def _explain(error: serial.SerialException) -> str:
    """pyserial's message without its wrapping, which repeats the port and the error number."""
    if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
        return "in use by another program (exclusive lock)"
    if error.errno:
        return os.strerror(error.errno)
    return str(error)


def _check_terminal(path: str) -> None:
    """Raise OSError with the file name for what cannot be opened as terminal, without opening it: that has effects."""
    mode = os.stat(path).st_mode
    if not stat.S_ISCHR(mode):
        raise OSError(errno.ENOTTY, "is not a terminal device", path)
    if not os.access(path, os.R_OK | os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def _check_scheme(scheme: str, name: str) -> None:
    from importlib.util import find_spec

    if not scheme.isidentifier() or find_spec(f"serial.urlhandler.protocol_{scheme}") is None:
        raise ConfigurationError(f'{name}: pyserial knows no "{scheme}://"')
