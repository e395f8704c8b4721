# SPDX-License-Identifier: Apache-2.0
"""Which power drivers are switched on, remembered beyond the death of the exporter process.

A power supply stays on when the process that switched it on is killed. So the paths are written down, before the switch
is touched, and the next process switches off what the record names before it does anything else. The file is locked
while a process uses it: a second exporter of the same name on the same host leaves it, and the hardware, alone.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from jumpstarter.common.runtime import state_directory

if TYPE_CHECKING:
    from jumpstarter.exporter.session import Session

__all__ = ["PowerRecord"]

logger = logging.getLogger(__name__)


class PowerRecord:
    """The record of one exporter. owner: "controller/namespace/name"."""

    def __init__(self, owner: str) -> None:
        self.path = state_directory() / f"{quote(owner.strip('/'), safe='')}.on.json"
        self._lock = threading.Lock()
        self._on: set[str] = set()
        self._file: int | None = None

    async def take_over(self, session: Session) -> None:
        """Switch off what a process that died has left on, then record what this one does."""
        if not session.power_off_on_end:
            return
        left = self._open()
        if self._file is None:
            return
        slots = {slot.path: slot.driver for slot in session.slots().values()}
        for path, driver in slots.items():
            if hasattr(driver, "off"):
                driver.on_switched = partial(self._switched, path)
        self._on = left & set(slots)
        if not self._on:
            self._write()
            return
        logger.warning("the exporter process before this one ended with %s on: switching off", ", ".join(sorted(left)))
        for path in self._on:
            slots[path].switched_on = True
        await session.power_off()

    def close(self) -> None:
        """Give the file up; it goes when everything is off."""
        with self._lock:
            if self._file is not None:
                if not self._on:
                    self.path.unlink(missing_ok=True)
                os.close(self._file)
                self._file = None

    def _open(self) -> set[str]:
        """Lock the file and read it. Without the lock nothing is recorded."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            logger.warning(
                "%s cannot be written (%s): a killed exporter would leave the power on", self.path, error.strerror
            )
            return set()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            logger.warning("another process on this host runs as this exporter (%s is locked)", self.path)
            return set()
        self._file = file
        data = os.pread(file, 1 << 20, 0)
        try:
            return set(json.loads(data)["on"]) if data else set()
        except (ValueError, KeyError, TypeError):
            logger.warning("%s is damaged; whether something was left on is not known", self.path)
            return set()

    def _switched(self, path: str, state: bool) -> None:
        with self._lock:
            before = set(self._on)
            (self._on.add if state else self._on.discard)(path)
            if self._on != before:
                self._write()

    def _write(self) -> None:
        if self._file is None:
            return
        data = json.dumps({"on": sorted(self._on)}).encode()
        try:
            # One short write in place: the lock is on this file, so it cannot be replaced by another.
            os.pwrite(self._file, data.ljust(os.fstat(self._file).st_size), 0)
            os.ftruncate(self._file, len(data))
        except OSError as error:
            logger.warning("%s cannot be written: %s", self.path, error.strerror)
