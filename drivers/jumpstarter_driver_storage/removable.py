# SPDX-License-Identifier: Apache-2.0
"""A storage switch whose storage comes to the exporter host and goes away again: a card in a reader, a USB stick."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import threading
import time
from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import export
from jumpstarter_driver_storage import blockdev
from jumpstarter_driver_storage.errors import StorageRefused
from jumpstarter_driver_storage.mux import Side, StorageMux
from jumpstarter_driver_storage.target import Checked, Target, check

__all__ = ["RemovableMux"]

_PAUSE: Final = 0.1  # there is no event that covers node, medium and first successful read
_NOT_THERE: Final = (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM)
_NOT_YET: Final = (*_NOT_THERE, errno.EIO, errno.EBUSY)


@dataclass(kw_only=True)
class RemovableMux(StorageMux):
    """A driver implements `select`, `storage_path` and `storage_targets`.

    `host` returns when the storage can be read on the exporter host, `dut` and `off` when it is gone from there. The
    storage is not taken away while something on the exporter host has it mounted or writes to it. What was flashed last
    is remembered while the storage is away: flashing the same image again takes it back, compares, and writes only what
    has changed since.

    A disk counts as the storage of this device only when it comes or goes with the switch. One that the exporter host
    reads already when nobody has seen it come is switched away first, and when it stays, it is another disk: nothing
    is written to it.

    storage_timeout: seconds for the storage to appear or to go. storage_leeway: seconds to wait after a write before
    the storage is switched, for media that go on working after they said that they have it all; what was written has
    been read back by then. storage_fsync_timeout: accepted for Jumpstarter's configurations; the flash engine flushes
    as it writes and needs no limit at the end.
    """

    #: Whether storage that stays on the exporter host after `dut` proves that the switch did not move.
    leaving_is_certain: ClassVar[bool] = True
    #: Where the storage goes to show that it is the one on the switch.
    away: ClassVar[Side] = "off"

    storage_timeout: float = 10
    storage_leeway: float = 0
    storage_fsync_timeout: float = 900

    # A call whose client went away leaves its thread behind for a moment; the next one waits for that.
    _moving: threading.Lock = field(init=False, repr=False, compare=False, default_factory=threading.Lock)
    _proven: tuple[int, str] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("storage_timeout", "storage_leeway", "storage_fsync_timeout"):
            value = getattr(self, name)
            if not 0 <= value <= 3600:
                raise ConfigurationError(f"{name} is {value:g}, must be 0 to 3600 seconds")

    @property
    @abstractmethod
    def target(self) -> str:
        """What is switched, for messages."""

    @abstractmethod
    def select(self, side: Side) -> None:
        """Move the switch; blocking. Raises when the hardware does not take it or says otherwise."""

    @abstractmethod
    def storage_path(self) -> str:
        """Device node of the storage while it is on the host; blocking. Raises OSError when it cannot be told."""

    async def connect_to(self, side: Side) -> None:
        """Switch, and see the storage come or go."""
        stop = threading.Event()
        try:
            await asyncio.to_thread(self._move, side, stop)
        finally:
            stop.set()  # whoever was cancelled does not wait on in the background

    async def after_write(self, name: str) -> None:
        """Remember under which name there is a record of the storage, give the medium its time, then as the base."""
        try:
            await asyncio.to_thread(self._remember, name)
        except OSError as error:
            # It only saves a comparison later; that the storage goes to the DUT matters more.
            self.logger.warning("%s: what it holds cannot be remembered: %s", self.target, error)
        if self.storage_leeway:
            await asyncio.sleep(self.storage_leeway)
        await super().after_write(name)

    def turn_timeout(self) -> float:
        """A flash that was cancelled ends with a switch to the DUT, which may take its time."""
        return super().turn_timeout() + self.storage_leeway + self.storage_timeout

    @export(readonly=True)
    def flash_state(self, target: str | None = None) -> dict[str, Any]:
        """As the base; of storage that is away what it held when it went, with ``away``."""
        state = super().flash_state(target)
        if state["exists"] or state["problem"]:
            return state
        last = self._last(str(state["name"]))
        record = self._store.load(last) if last is not None else None
        known = record is not None and record.state == "valid"
        capacity = last.capacity if last is not None else None
        return {**state, "away": True, "capacity": capacity, "record": record.summary() if record and known else None}

    @export
    async def verify_image(self, target: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """As the base, after connecting to the host; whatever comes of it, the storage goes to the DUT then."""
        await asyncio.to_thread(self.find_target, target)
        async with self._on_host():
            comparing: Any = super().verify_image(target)
            async with aclosing(comparing) as events:
                async for event in events:
                    yield event

    def storage_there(self) -> bool:
        """Whether the exporter host can read the storage now; blocking."""
        try:
            return _size(self.storage_path()) > 0
        except OSError as error:
            if error.errno in _NOT_YET:
                return False
            raise

    def storage_is_certain(self) -> bool:
        """Whether the disk is known to be the storage of this device without seeing it move; blocking."""
        return False

    def _look(self, name: str, target: Target) -> tuple[dict[str, Any], Checked | None]:
        """Storage that is not here is no problem when the switch may have it on the other side: `host` brings it."""
        state, checked = super()._look(name, target)
        if state["code"] == "not_found" and not self.storage_is_amiss():
            state |= {"problem": None, "code": None}
        return state, checked

    def storage_is_amiss(self) -> bool:
        """Whether storage that is not here is a fault on whichever side the switch is. Asks no hardware."""
        return False

    async def _must_be_reachable(self, what: str) -> None:
        """Jumpstarter's clients write and read without asking for `host` first."""
        if self._side != "host" or await self.connected_to() != "host":
            await self._switch("host")

    def _move(self, side: Side, stop: threading.Event) -> None:
        with self._moving:
            if stop.is_set():
                return
            if side != "host":
                self._let_go()
            elif self.storage_there() and self._mark() != self._proven and not self.storage_is_certain():
                self._let_go()
                self.select(self.away)
                self._wait_until_gone(stop, certain=True)
            self.select(side)
            self.logger.info("%s: switched to %s", self.target, side)
            if side != "host":
                self._wait_until_gone(stop, certain=self.leaving_is_certain)
            else:
                self._wait_until_there(stop)
                self._proven = self._mark() if not stop.is_set() else None

    def _mark(self) -> tuple[int, str] | None:
        """Which disk it is since when, as far as the kernel tells."""
        try:
            path = self.storage_path()
            number = blockdev.device_number(path)
            return (os.stat(path).st_rdev, blockdev.activity(number)["diskseq"]) if number else None
        except OSError:  # it has just gone
            return None

    def _note(self, name: str) -> Path:
        which = f"{type(self).__name__}:{self.target}:{name}"
        return self._store.folder / f"last-{hashlib.sha256(which.encode()).hexdigest()[:32]}.json"

    def _remember(self, name: str) -> None:
        note = self._note(name)
        try:
            checked = check(name, self.find_target(name)[1], self.owner, writing=False)
        except StorageRefused:  # nothing was written then, and nothing is known of what comes next
            note.unlink(missing_ok=True)
            return
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = note.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({"key": checked.key, "capacity": checked.capacity}))
        os.replace(temporary, note)

    def _last(self, name: str) -> Checked | None:
        """The storage as it was when it was written last; None when nobody knows."""
        try:
            told = json.loads(self._note(name).read_text())
            key, capacity = str(told["key"]), int(told["capacity"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # damaged is as good as none
            return None
        target = self.find_target(name)[1]
        return Checked(
            name=name, owner=self.owner, target=target, kind="block", exists=False, capacity=capacity, key=key
        )

    def _let_go(self) -> None:
        """Refuse to take away what the exporter host uses; what it has not written yet is written now."""
        try:
            path = self.storage_path()
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_EXCL)
        except OSError as error:
            if error.errno in _NOT_THERE:
                return  # nothing that could be taken away from anybody
            # Somebody else can have mounted what this user may not even read.
            number = blockdev.device_number(path)
            using = blockdev.users(number) if number else []
            if error.errno == errno.EBUSY:
                using = using or ["held by a program that writes to it"]
            if not using:
                return
            raise StorageRefused(
                f"{self.target}: its storage {path} is in use on the exporter host: {', '.join(using)}", code="busy"
            ) from None
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _wait_until_there(self, stop: threading.Event) -> None:
        deadline = time.monotonic() + self.storage_timeout
        while True:
            try:
                if _size(self.storage_path()) > 0:
                    return
                obstacle = "no medium in it"
            except OSError as error:
                if error.errno not in _NOT_YET:
                    raise
                obstacle = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{self.target}: was switched to the exporter host, but its storage is not there after "
                    f"{self.storage_timeout:g} s ({obstacle}): is a card or stick in it?"
                )
            if stop.wait(_PAUSE):
                return

    def _wait_until_gone(self, stop: threading.Event, *, certain: bool) -> None:
        deadline = time.monotonic() + self.storage_timeout
        while self.storage_there():
            if time.monotonic() > deadline:
                problem = (
                    f"{self.target}: was switched away, but the exporter host still reads {self.storage_path()} after "
                    f"{self.storage_timeout:g} s"
                )
                if certain:
                    raise OSError(errno.EBUSY, f"{problem}: is that the storage of this device?")
                self.logger.warning("%s; the switch itself says that it moved", problem)
                return
            if stop.wait(_PAUSE):
                return


def _size(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:  # who may switch need not be able to read; the kernel tells everybody the size
        number = blockdev.device_number(path)
        if number is None:
            raise
        return int((blockdev.sysfs(number) / "size").read_text()) * 512
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)
