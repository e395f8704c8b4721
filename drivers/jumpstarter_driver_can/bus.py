# SPDX-License-Identifier: Apache-2.0
"""A bus of python-can on the exporter: opened once, read by one thread, used by many."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import can

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_driver_can.backlog import Backlog, Entry
from jumpstarter_driver_can.packing import EXTENDED, pack

__all__ = ["BusSettings", "Failures", "SharedBus", "bus_error", "forget_rest"]

#: Seconds a read waits before it looks whether the bus shall be closed.
_READ = 0.1
#: So many failed reads within so many seconds, and the interface is given up.
_FAILURES, _FAILURES_SECONDS = 10, 2.0
#: Seconds a serial adapter may need to take a frame when the caller says nothing: its interface would wait for ever.
_SERIAL_SEND = 5.0
#: Frames that are kept for readers: 64 KiB to 1 MiB, and a second of a full classic bus.
_BACKLOG = 8192


class BusSettings:
    """How to open a bus: the keyword arguments of `can.Bus`.

    Raises ConfigurationError for an interface python-can does not know. None as interface means what python-can's own
    configuration (environment, ~/.canrc) says.
    """

    def __init__(
        self, channel: str | int | None, interface: str | None, options: Mapping[str, Any], **named: Any
    ) -> None:
        if interface is not None and interface not in can.VALID_INTERFACES:
            known = ", ".join(sorted(can.VALID_INTERFACES))
            raise ConfigurationError(f'can: interface "{interface}" is unknown to python-can; it has {known}')
        for name in options:
            if name in named or name in ("channel", "interface"):
                raise ConfigurationError(f"can: options.{name} is a field of its own: set {name} beside options")
        named = {name: value for name, value in named.items() if value is not None}
        for name in ("bitrate", "data_bitrate"):
            if named.get(name, 1) <= 0:
                raise ConfigurationError(f"can: {name} is {named[name]}, must be positive (bit/s)")
        self.arguments: dict[str, Any] = {"channel": channel, "interface": interface, **named, **options}
        self.where = f"{interface or 'default interface'} channel {channel}"

    def open(self) -> can.BusABC:
        """Open it. Blocks. Raises ConnectionError, or ConfigurationError for settings the interface refuses."""
        try:
            return can.Bus(**self.arguments)
        except (can.CanError, OSError) as error:
            raise ConnectionError(f"can: {self.where} cannot be opened: {_reason(error)}") from error
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"can: {self.where} cannot be opened with these settings: {error}") from error
        except ImportError as error:
            raise ConnectionError(
                f"can: {self.where} cannot be opened: python-can's interface needs a module: {error}"
            ) from error


def bus_error(where: str, what: str, error: Exception) -> Exception:
    """The exception to raise for what python-can raised while `what` was done."""
    if isinstance(error, can.CanTimeoutError):
        return TimeoutError(f"can: {where}: {what}: {_reason(error)}")
    if isinstance(error, NotImplementedError):
        return NotImplementedError(f"can: {where}: {what}: this interface cannot do it")
    if isinstance(error, (can.CanError, OSError)):
        return ConnectionError(f"can: {where}: {what}: {_reason(error)}")
    return error


class Failures:
    """Tells an interface that is gone, where each read fails, from noise on the line, where now and then one does."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_FAILURES)

    def lasting(self) -> bool:
        """A read failed: whether it was one too many in a short time."""
        self._times.append(time.monotonic())
        return len(self._times) == _FAILURES and self._times[-1] - self._times[0] < _FAILURES_SECONDS


def forget_rest(bus: can.BusABC) -> None:
    """Let slcan forget a line that it cannot decode: it would keep it, and put each further line to its end."""
    rest = getattr(bus, "_buffer", None)
    if isinstance(rest, bytearray):
        rest.clear()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class SharedBus:
    """A bus with the thread that reads it. Methods block and are thread-safe, but for `ready` and `backlog`."""

    def __init__(self, settings: BusSettings, logger: logging.Logger) -> None:
        self.settings = settings
        self.backlog = Backlog(_BACKLOG)
        self.send_lock = threading.Lock()
        self._logger = logger
        self._lock = threading.Lock()
        self._bus: can.BusABC | None = None
        self._stop = threading.Event()
        self._reader: threading.Thread | None = None
        self._opener: threading.Thread | None = None
        self._over = False

    @property
    def ready(self) -> bool:
        """Whether the bus is open and read."""
        return self._bus is not None

    def start(self) -> None:
        """Open the bus without waiting; a failure is logged, and told to whoever uses the bus first."""
        with self._lock:
            self._over = False
        if self.ready or self._opener is not None and self._opener.is_alive():
            return
        self._opener = threading.Thread(target=self._open_quietly, name=f"can open {self.settings.where}", daemon=True)
        self._opener.start()

    def _open_quietly(self) -> None:
        try:
            self.get()
        except (ConnectionError, ConfigurationError) as error:
            self._logger.warning("%s; it is tried again when it is used", error)

    def get(self) -> can.BusABC:
        """The open bus, opened now if need be."""
        if (bus := self._bus) is not None:
            return bus
        with self._lock:
            if self._bus is None:
                if self._over:  # a call that was under way in its thread when the session ended
                    raise ConnectionError(f"can: {self.settings.where}: the session has ended")
                bus = self.settings.open()
                self.backlog.fail(None)
                self._stop = threading.Event()
                self._reader = threading.Thread(
                    target=self._read, args=(bus, self._stop), name=f"can read {self.settings.where}", daemon=True
                )
                self._bus = bus
                self._reader.start()
            return self._bus

    def _read(self, bus: can.BusABC, stop: threading.Event) -> None:
        failures = Failures()
        while not stop.is_set():
            try:
                msg = bus.recv(_READ)
                if msg is not None:
                    ident = msg.arbitration_id | (EXTENDED if msg.is_extended_id else 0)
                    channel = msg.channel if isinstance(msg.channel, (str, int)) else None
                    self.backlog.append(Entry(ident, pack(msg), channel))
            except Exception as error:  # noqa: BLE001 (interfaces raise all kinds for what is no frame)
                if stop.is_set():
                    return
                if failures.lasting():
                    self._broken(bus, error)
                    return
                self._logger.warning("can: %s: skipped what is no frame: %s", self.settings.where, _reason(error))
                forget_rest(bus)

    def _broken(self, bus: can.BusABC, error: Exception) -> None:
        """The adapter is gone, say. Readers are told; who uses the bus next opens it again."""
        self._logger.warning("can: %s: reading failed: %s", self.settings.where, _reason(error))
        with self._lock:
            if self._bus is bus:
                self._bus = None
        self._shutdown(bus)
        self.backlog.fail(ConnectionError(f"can: {self.settings.where}: reading failed: {_reason(error)}"))

    def send(self, msg: can.Message, timeout: float | None) -> None:
        """Hand a frame to the interface; timeout: seconds it may need to take it. Raises ConnectionError and others."""
        bus = self.get()
        if timeout is None and hasattr(bus, "serialPortOrig"):
            timeout = _SERIAL_SEND
        try:
            with self.send_lock:
                bus.send(msg, timeout)
        except (can.CanError, OSError, NotImplementedError) as error:
            raise bus_error(self.settings.where, f"frame {msg.arbitration_id:X} was not sent", error) from error

    def close(self, *, over: bool = False) -> None:
        """Close the bus and end its thread. Who uses it again opens it again, unless it is over until `start`."""
        if self._opener is not None and self._opener is not threading.current_thread():
            self._opener.join()
            self._opener = None
        with self._lock:
            self._over = over
            bus, self._bus, reader = self._bus, None, self._reader
            self._stop.set()
        if bus is None:
            return
        if reader is not None:
            reader.join()
        self._shutdown(bus)
        self.backlog.fail(ConnectionError(f"can: {self.settings.where} was closed"))

    def _shutdown(self, bus: can.BusABC) -> None:
        try:
            bus.shutdown()
        except (can.CanError, OSError) as error:
            # The bus is not used any more either way.
            self._logger.warning("can: %s: closing failed: %s", self.settings.where, _reason(error))
