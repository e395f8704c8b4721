# SPDX-License-Identifier: Apache-2.0
"""Flashers that boot a small system into a board's RAM over the network and let it write the board's own disk."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from jumpstarter.common.storage import BLOCK_SIZE, parse_size
from jumpstarter.driver import Driver, export
from jumpstarter_driver_composite.driver import Proxy
from jumpstarter_driver_flashers.images import ImageCache
from jumpstarter_driver_flashers.intake import ImageTaker
from jumpstarter_driver_flashers.job import Job, end, save_record
from jumpstarter_driver_flashers.run import BoardRun
from jumpstarter_driver_flashers.wish import Wish
from jumpstarter_driver_http.driver import HttpServer
from jumpstarter_driver_pyserial.hub import ConsoleBusy
from jumpstarter_driver_storage.errors import StorageFault, StorageRefused
from jumpstarter_driver_storage.flasher import parse_options
from jumpstarter_driver_storage.job import FlashOptions
from jumpstarter_driver_storage.target import Checked, Target
from jumpstarter_driver_tftp.driver import Tftp
from jumpstarter_driver_uboot.driver import UbootConsole

__all__ = ["BaseFlasher", "RCarS4Flasher", "TIJ784S4Flasher"]

Event = dict[str, Any]

_LEAVE_SECONDS: Final = 10.0


@dataclass(kw_only=True)
class BaseFlasher(ImageTaker):
    """Flashes a board's disk through its own bootloader. Its configuration: `FlasherSettings`."""

    _runs: set[asyncio.Task[Event]] = field(init=False, repr=False, default_factory=set)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_configuration()
        self._variant = self.variant
        self._cache = ImageCache(Path(self.cache_dir).expanduser(), parse_size(self.cache_size))
        if "tftp" not in self.children:
            self.children["tftp"] = Tftp(root_dir=self.tftp_dir)
        if "http" not in self.children:
            self.children["http"] = HttpServer(root_dir=self.http_dir)
        if "uboot" not in self.children:
            parts: dict[str, Driver] = {name: Proxy.of(self.children[name]) for name in ("power", "serial")}
            self.children["uboot"] = UbootConsole(children=parts)

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_flashers.client.BaseFlasherClient"

    @export(readonly=True)
    def targets(self) -> list[dict[str, Any]]:
        """What can be flashed; what it holds is not known before the board runs."""
        default = self.default_target_name()
        return [{**_state(name, one), "default": name == default} for name, one in self.storage_targets().items()]

    @export(readonly=True)
    def flash_state(self, target: str | None = None) -> dict[str, Any]:
        """One target, with ``record`` of what was written last. ``untouched`` is never known: the board may have been
        on since."""
        name, found = self.find_target(target)
        record = self._store.load(self._checked(name, found))
        return {**_state(name, found), "record": record.summary() if record else None, "untouched": False}

    @export
    async def flash_image(
        self, source: Any, target: str | None = None, options: dict[str, Any] | None = None
    ) -> AsyncIterator[Event]:
        """Write an image and tell how it goes: ``progress`` events, then one ``result`` or ``error``.

        ``options``: as of every flasher, and ``flasher``: the fields of `jumpstarter_driver_flashers.wish.Wish`.
        """
        async with aclosing(self._flash(source, target, options or {})) as events:
            async for event in events:
                yield event

    @export(readonly=True)
    async def verify_image(self, target: str | None = None) -> AsyncIterator[Event]:
        """Boot the board into its flasher and compare its disk with the record: ``progress`` events, then one
        ``result``. What differs is told as all of it: a digest knows no parts."""
        name, found = await asyncio.to_thread(self.find_target, target)
        checked = self._checked(name, found)
        record = self._store.load(checked)
        if record is None or record.state != "valid":
            raise StorageRefused(f"{checked.label} has no valid record to compare it with", code="refused")
        method = "uboot" if record.digest == "crc32" else "shell"
        device = await asyncio.to_thread(self._device, name, method)
        job = Job(target=name, device=device, method=method, wish=Wish(), verify=True, checked=checked, record=record)

        async def work(say: Callable[[Event], None]) -> Event:
            outcome = await self._board_run(job, say).run()
            blocks = -(-record.size // BLOCK_SIZE)
            return {
                "event": "result", "target": name, "size": record.size, "sha256": record.sha256,
                "bad": 0 if outcome.same else blocks, "bad_blocks": [] if outcome.same else [[0, blocks]],
                "block_size": BLOCK_SIZE,
            }  # fmt: skip

        async with self._turn(name), aclosing(self._drive(work)) as events:
            async for event in events:
                yield event

    @export
    async def dump(self, target: Any, partition: str | None = None) -> None:
        """Not offered."""
        raise NotImplementedError("dump: a network flasher only writes")

    def storage_targets(self) -> Mapping[str, Target]:
        """Those of the manifest and of ``uboot_targets``; paths are names on the board."""
        found = {name: f"uboot:{disk}" for name, disk in self.uboot_targets.items()}
        if self.flasher_bundle is not None or self._forced is not None:
            found |= self.bundle().manifest.spec.targets
        return {name: Target(path=device, kind="block") for name, device in found.items()}

    def find_target(self, name: str | None) -> tuple[str, Target]:
        """A target by name, ``partlabel:<label>``, or a device's path below /dev."""
        if name is not None and name.startswith(("partlabel:", "/dev/")):
            if any(ord(char) < 32 for char in name):
                raise ValueError(f"target {name!r}: control character")
            return name, Target(path=name, kind="block")
        return super().find_target(name)

    def turn_timeout(self) -> float:
        """A flash that was cancelled ends with switching the board."""
        return super().turn_timeout() + _LEAVE_SECONDS + self.power_wait

    def reset(self) -> None:
        """Start of a session."""
        super().reset()
        self._variant = self.variant
        with self._guard:
            self._forced = self._bundle = None

    def close(self) -> None:
        """End of the session: a running flash ends, and what was put on the servers goes."""
        for run in tuple(self._runs):
            _end(run, _LEAVE_SECONDS + self.power_wait)  # before its power switch and its servers are closed
        for path in self._placed:
            path.unlink(missing_ok=True)
        self._placed.clear()
        super().close()

    # --- how ------------------------------------------------------------------------------------------------------

    async def _flash(
        self, source: Any, target: str | None, options: Mapping[str, Any], *, prepare: bool = True
    ) -> AsyncGenerator[Event, None]:
        try:
            values = dict(options)
            data = values.pop("data", None)
            wish = Wish.parse(values.pop("flasher", None) or {})
            name, found = await asyncio.to_thread(self.find_target, target)
            method = wish.method or self._method_of(name)
            if method == "fls":
                self.fls()
            wanted = parse_options(values, Target(path=found.path, kind="block"))
            device = await asyncio.to_thread(self._device, name, method)  # may wait for the bundle
            job: dict[str, Any] = {
                "target": name, "device": device, "method": method, "wish": wish,
                "verify": wanted.verify, "checked": self._checked(name, found),
            }  # fmt: skip
            repaired = len(wanted.repair or ())

            async def work(say: Callable[[Event], None]) -> Event:
                return await self._perform(source, data, wanted, job, repaired, say)

            async with self._turn(name), aclosing(self._drive(work)) as events:
                async for event in events:
                    yield event
        except StorageFault as fault:
            self.logger.warning('flash of target "%s" failed: %s', target or "(default)", fault)
            yield fault.as_event()
            raise

    async def _perform(
        self, source: Any, data: Mapping[str, Any] | None, options: FlashOptions, values: dict[str, Any],
        repaired: int, say: Callable[[Event], None],
    ) -> Event:  # fmt: skip
        started = time.monotonic()
        wish: Wish = values["wish"]
        received = [0]
        if wish.url is not None:
            if options.size is None or options.sha256 is None or values["method"] == "uboot":
                raise StorageRefused(
                    "an image that the board fetches itself needs its size and sha256, and method shell or fls",
                    code="refused",
                )
            job = Job(**values, direct_size=options.size, direct_sha256=options.sha256)
            outcome = await self._board_run(job, say).run()
        else:
            arriving = asyncio.create_task(self._arrive(source, data, options, say, received))
            try:
                job = Job(**values, image=arriving)
                outcome = await self._board_run(job, say).run()
            finally:
                await end(arriving)
        if outcome.verified:
            save_record(self._store, job.checked, job.device, outcome)
        self.logger.info(
            'target "%s": %d bytes written by %s, sha256 %s', job.target, outcome.written, job.method, outcome.sha256
        )
        return {
            "event": "result", "target": job.target, "size": outcome.size, "written": outcome.written, "skipped": 0,
            "received": received[0], "sha256": outcome.sha256, "verified": outcome.verified,
            "repaired_blocks": repaired, "seconds": time.monotonic() - started,
        }  # fmt: skip

    async def _drive(self, work: Callable[[Callable[[Event], None]], Awaitable[Event]]) -> AsyncGenerator[Event, None]:
        """Events of a task, then its result. Leaving early cancels the task and waits until the board is left as
        configured."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()

        async def main() -> Event:
            try:
                return await work(queue.put_nowait)
            except ConsoleBusy as error:
                raise StorageRefused(str(error), code="busy") from error
            finally:
                queue.put_nowait(None)

        task = asyncio.create_task(main())
        self._runs.add(task)
        try:
            while (event := await queue.get()) is not None:
                yield event
            try:
                result = await asyncio.shield(task)
            except asyncio.CancelledError:
                if not task.cancelled():
                    raise
                raise StorageRefused("the session ended", code="cancelled", state="the target is incomplete") from None
            yield result
        finally:
            try:
                await end(task)
            finally:
                self._runs.discard(task)  # until then `close` has to wait for it

    def _board_run(self, job: Job, say: Callable[[Event], None]) -> BoardRun:
        def tell(phase: str, done: int, total: int | None) -> None:
            self.logger.debug("%s: %s %d/%s", job.target, phase, done, total)
            say({"event": "progress", "phase": phase, "done": done, "total": total})

        return BoardRun(self, job, tell, self._store, self._cache)

    def _method_of(self, name: str) -> str:
        if self.method == "shell" and self.flasher_bundle is None and name in self.uboot_targets:
            return "uboot"
        return self.method

    def _device(self, name: str, method: str) -> str:
        """What a target is called where it is written."""
        if method == "uboot":
            if name not in self.uboot_targets:
                known = ", ".join(self.uboot_targets) or "none"
                raise StorageRefused(
                    f'method uboot: uboot_targets of driver {self.owner} has no target "{name}"; it has: {known}',
                    code="refused",
                )
            return self.uboot_targets[name]
        if name.startswith(("/dev/", "partlabel:")):
            return name
        targets = self.bundle().manifest.spec.targets
        if name not in targets:
            raise StorageRefused(
                f'method {method}: the bundle has no target "{name}"; it has: {", ".join(targets)}', code="refused"
            )
        return targets[name]

    def _checked(self, name: str, target: Target) -> Checked:
        """What the record of a board's disk is kept under."""
        key = f"flasher:{self.uuid if self.uuid.version == 5 else self.owner}:{name}"
        return Checked(name=name, owner=self.owner, target=target, kind="block", exists=True, capacity=None, key=key)


@dataclass(kw_only=True)
class TIJ784S4Flasher(BaseFlasher):
    """`BaseFlasher` for the TI J784S4 evaluation board."""

    flasher_bundle: str | None = "quay.io/jumpstarter-dev/jumpstarter-flasher-ti-j784s4:latest"


@dataclass(kw_only=True)
class RCarS4Flasher(BaseFlasher):
    """`BaseFlasher` for the Renesas R-Car S4 board."""

    flasher_bundle: str | None = "quay.io/jumpstarter-dev/jumpstarter-flasher-rcar-s4:latest"


def _end(run: asyncio.Task[Event], seconds: float) -> None:
    """Cancel a task from any thread and, unless it belongs to this one, wait until it has ended."""
    loop = run.get_loop()
    if not loop.is_running():
        return
    ended = threading.Event()

    def cancel() -> None:
        run.add_done_callback(lambda _: ended.set())
        if not run.cancelling():  # a second time it would interrupt what the first one does
            run.cancel()

    loop.call_soon_threadsafe(cancel)
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if here is not loop:
        ended.wait(seconds)


def _state(name: str, target: Target) -> dict[str, Any]:
    return {
        "name": name, "kind": "block", "path": target.path, "capacity": None, "exists": True, "problem": None,
        "code": None,
    }  # fmt: skip
