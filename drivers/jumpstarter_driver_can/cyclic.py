# SPDX-License-Identifier: Apache-2.0
"""Frames sent again and again by the exporter."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

import can

from jumpstarter_driver_can.bus import SharedBus, bus_error

__all__ = ["CyclicSend"]

#: Seconds: five periods of 10 ms are 50 ms, whatever floating point makes of it.
_ROUNDING = 1e-6


class CyclicSend:
    """Sends the frames in turn, one each `period` seconds, for `duration` seconds or until stopped.

    Where the interface does it by itself (SocketCAN's broadcast manager) it is left to it. Otherwise a thread sends;
    unlike python-can's own it ends at once when stopped, and a failure is kept for whoever stops it.
    """

    def __init__(
        self,
        bus: SharedBus,
        messages: Sequence[can.Message],
        period: float,
        duration: float | None,
        logger: logging.Logger,
    ) -> None:
        self.messages = list(messages)
        self._bus, self._period, self._duration, self._logger = bus, period, duration, logger
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._native: can.broadcastmanager.CyclicSendTaskABC | None = None
        self._failure: Exception | None = None
        self.sent = 0

    @property
    def running(self) -> bool:
        """Whether frames are being sent, as far as is known: an interface does not tell when a duration is over."""
        return self._native is not None or self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begin, if it is not running."""
        if self.running:
            return
        self._failure, self.sent = None, 0
        bus = self._bus.get()
        if type(bus)._send_periodic_internal is not can.BusABC._send_periodic_internal:
            try:
                self._native = bus._send_periodic_internal(self.messages, self._period, self._duration)
            except (can.CanError, OSError) as error:
                raise bus_error(self._bus.settings.where, "sending periodically", error) from error
            return
        self._stop = threading.Event()
        name = f"can send {self.messages[0].arbitration_id:X} every {self._period:g} s"
        self._thread = threading.Thread(target=self._run, args=(self._stop,), name=name, daemon=True)
        self._thread.start()

    def modify(self, messages: Sequence[can.Message]) -> None:
        """Send these from the next turn on. Raises ValueError when their number or id differs."""
        if [m.arbitration_id for m in messages] != [m.arbitration_id for m in self.messages]:
            raise ValueError("can: a periodic task keeps its number of frames and their id; start another one")
        if isinstance(self._native, can.broadcastmanager.ModifiableCyclicTaskABC):
            self._native.modify_data(list(messages))
        self.messages = list(messages)

    def stop(self) -> None:
        """End, and wait for it. Raises ConnectionError when sending had failed before."""
        native, self._native = self._native, None
        if native is not None:
            native.stop()
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise ConnectionError(f"the periodic sending had ended after {self.sent} frames: {failure}") from failure

    def _run(self, stop: threading.Event) -> None:
        begin = time.monotonic()
        turn = 0
        while not stop.is_set():
            # Frames are due at multiples of the period after the first: a late one does not make all others late.
            due = begin + turn * self._period
            if self._duration is not None and turn * self._period >= self._duration - _ROUNDING:
                return
            if stop.wait(max(due - time.monotonic(), 0)):
                return
            messages = self.messages
            try:
                self._bus.send(messages[turn % len(messages)], None)
            except Exception as error:  # noqa: BLE001 (whatever it is, the one who stops the task has to learn of it)
                self._logger.warning("can: sending periodically ended after %d frames: %s", self.sent, error)
                self._failure = error
                return
            self.sent += 1
            turn += 1
