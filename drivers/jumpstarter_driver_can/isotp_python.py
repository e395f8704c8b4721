# SPDX-License-Identifier: Apache-2.0
"""ISO-TP in Python, over any bus python-can can open."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import can
import isotp

from jumpstarter.driver import export
from jumpstarter.driver.cancellation import call_cancelled
from jumpstarter_driver_can.bus import BusSettings, Failures, forget_rest
from jumpstarter_driver_can.common import IsoTpMessage
from jumpstarter_driver_can.isotp_base import IsoTpDriver, WireAddress, isotp_address

__all__ = ["IsoTpPython"]

#: Seconds between two looks whether the caller is still there.
_SLICE = 0.2
#: Seconds a blocking send may take when the caller says nothing: a base, and for each frame the longest pause (127 ms)
#: a receiver can ask for.
_SEND_BASE, _SEND_FRAME = 10.0, 0.13


@dataclass(kw_only=True)
class IsoTpPython(IsoTpDriver):
    """An ISO-TP link on a bus of its own.

    channel, interface, bitrate, fd, data_bitrate, options: as of `Can`. read_timeout: seconds a thread of the link
    waits for a frame before it looks around; smaller is quicker to stop, and busier.
    """

    channel: str | int | None
    interface: str | None
    read_timeout: float = 0.05
    bitrate: int | None = None
    fd: bool | None = None
    data_bitrate: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    _settings: BusSettings = field(init=False, repr=False)
    _lock: threading.RLock = field(init=False, repr=False, default_factory=threading.RLock)
    _link: _Link | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settings = BusSettings(
            self.channel,
            self.interface,
            self.options,
            bitrate=self.bitrate,
            fd=self.fd,
            data_bitrate=self.data_bitrate,
        )

    @export(concurrent=True)
    def start(self) -> None:
        """Open the bus and start the link. Raises ValueError when it is started already."""
        with self._lock:
            self.require_session()
            if self._link is not None:
                raise ValueError("isotp: the link is started already; stop it first")
            self._link = _Link(self)

    @export(concurrent=True)
    def stop(self) -> None:
        """Stop the link and close the bus; what was received and not read is gone. No error when it is stopped."""
        self.end_link()

    def end_link(self) -> None:
        """Stop the link, if it is started."""
        with self._lock:
            link, self._link = self._link, None
        if link is not None:
            link.close()

    def _started(self) -> _Link:
        link = self._link
        if link is None:
            raise ValueError("isotp: the link is not started; call start() first")
        return link

    @export(concurrent=True)
    def send(
        self, msg: IsoTpMessage, target_address_type: int | None = None, send_timeout: float | None = None
    ) -> None:
        """Send a message. target_address_type: 0 physical, 1 functional. send_timeout: seconds, with blocking_send.

        With ``blocking_send`` it returns when the last frame was sent, and raises ConnectionError or TimeoutError when
        it was not. Without, it returns when the message is queued, and `errors` tells what became of it.
        """
        self._started().send(msg.data or b"", target_address_type, send_timeout, self.params.blocking_send)

    @export(concurrent=True)
    def recv(self, block: bool = False, timeout: float | None = None) -> IsoTpMessage:
        """The next message. block: wait for it, `timeout` seconds or without end. No data when there is none."""
        return IsoTpMessage(data=self._started().recv(block, timeout))

    @export(concurrent=True)
    def request(self, msg: IsoTpMessage, timeout: float = 5.0) -> IsoTpMessage:
        """Send a message and return the next that comes. What was received before is thrown away.

        Raises TimeoutError when none came within `timeout` seconds, ConnectionError when the message was not sent.
        """
        link = self._started()
        begin = time.monotonic()
        while link.recv(False, None) is not None:
            pass
        link.send(msg.data or b"", None, timeout, True)
        answer = link.recv(True, max(timeout - (time.monotonic() - begin), 0))
        if answer is None:
            raise TimeoutError(f"isotp: {self._settings.where}: no answer within {timeout:g} s{link.last_error()}")
        return IsoTpMessage(data=answer)

    @export(readonly=True)
    def available(self) -> bool:
        """Whether a message is there."""
        return bool(self._started().stack.available())

    @export(readonly=True)
    def transmitting(self) -> bool:
        """Whether a message is being sent."""
        return bool(self._started().stack.transmitting())

    @export(concurrent=True)
    def errors(self) -> list[str]:
        """What went wrong on the link since this was asked last: timeouts, broken sequences."""
        return self._started().take_errors()

    @export(concurrent=True)
    def set_address(self, address: WireAddress) -> None:
        """Use another address from now on."""
        with self._lock:
            self.address = isotp_address(address)
            if self._link is not None:
                self._link.stack.set_address(self.address)

    @export(concurrent=True)
    def stop_sending(self) -> None:
        """Give up the message being sent."""
        self._started().stack.stop_sending()

    @export(concurrent=True)
    def stop_receiving(self) -> None:
        """Give up the message being received."""
        self._started().stack.stop_receiving()


class _Watch(can.Listener):
    """Keeps the thread that reads the bus alive over what is no frame. gone: the bus cannot be read any more."""

    def __init__(self, bus: can.BusABC, failed: Callable[[Exception], None]) -> None:
        self._bus, self._failed = bus, failed
        self._failures = Failures()
        self.gone = False

    def on_message_received(self, msg: can.Message) -> None:
        """Frames are for the link."""

    def on_error(self, exc: Exception) -> None:
        """A read failed. The thread of python-can goes on after this, so it must not spin when every read fails."""
        if not self.gone:
            self._failed(exc)
            forget_rest(self._bus)
            self.gone = self._failures.lasting()
        if self.gone:
            time.sleep(_SLICE)


class _Link:
    """A bus, the thread that reads it and the threads of the protocol, as long as the link is started."""

    def __init__(self, driver: IsoTpPython) -> None:
        self._where = driver._settings.where
        self._logger = driver.logger
        self._errors: deque[str] = deque(maxlen=64)
        self._last = ""
        self._bus = driver._settings.open()
        self._watch = _Watch(self._bus, self._failed)
        self._notifier = can.Notifier(self._bus, [self._watch], timeout=driver.read_timeout)
        try:
            self.stack = isotp.NotifierBasedCanStack(
                self._bus,
                self._notifier,
                address=driver.address,
                error_handler=self._failed,
                # Always blocking: only so the library tells whether sending worked. `send` makes of it what was asked.
                params={**driver.params.as_dict(), "blocking_send": True},
                read_timeout=driver.read_timeout,
            )
            self.stack.start()
        except BaseException:
            self._notifier.stop()
            self._bus.shutdown()
            raise
        self._frame = driver.params.tx_data_length

    def close(self) -> None:
        """End the threads and close the bus."""
        try:
            self.stack.stop()
            self._notifier.stop()
        finally:
            self._bus.shutdown()

    def _failed(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        self._logger.warning("isotp: %s: %s", self._where, text)
        self._errors.append(text)
        self._last = text

    def last_error(self) -> str:
        """The last error of the link, for the end of a message."""
        return f" ({self._last})" if self._last else ""

    def take_errors(self) -> list[str]:
        """The errors since the last time."""
        errors = list(self._errors)
        for _ in errors:
            self._errors.popleft()
        return errors

    def _check(self) -> None:
        """Raise ConnectionError when the link reads no more, or a thread of it has died."""
        thread = self.stack.main_thread
        if self._watch.gone or (self.stack.started and (thread is None or not thread.is_alive())):
            raise ConnectionError(f"isotp: {self._where}: the link has broken down{self.last_error()}; restart it")

    def send(self, data: bytes, kind: int | None, timeout: float | None, wait: bool) -> None:
        """Send; with `wait` until it is done."""
        self._check()
        self._last = ""
        if timeout is None:
            timeout = _SEND_BASE + _SEND_FRAME * len(data) / self._frame
        try:
            self.stack.send(data, kind, timeout if wait else 0)
        except isotp.BlockingSendTimeout:
            if wait:
                self.stack.stop_sending()
                raise TimeoutError(f"isotp: {self._where}: not sent within {timeout:g} s{self.last_error()}") from None
        except isotp.BlockingSendFailure as error:
            raise ConnectionError(f"isotp: {self._where}: not sent{self.last_error() or f': {error}'}") from error
        except RuntimeError as error:  # listen mode, a full queue
            raise ConnectionError(f"isotp: {self._where}: not sent: {error}") from error

    def recv(self, block: bool, timeout: float | None) -> bytes | None:
        """The next message; ends early when the caller went away or the link was stopped."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _SLICE if end is None else min(_SLICE, max(end - time.monotonic(), 0))
            data = self.stack.recv(block and left > 0, left if left > 0 else None)
            if data is None:
                self._check()
            if data is not None or not block or call_cancelled() or not self.stack.started:
                return None if data is None else bytes(data)
            if end is not None and time.monotonic() >= end:
                return None
