# SPDX-License-Identifier: Apache-2.0
"""What every method of flashing a board needs: the image, the servers, and files on them."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jumpstarter.driver.calls import call_to_end
from jumpstarter_driver_flashers.images import ImageCache, StoredImage
from jumpstarter_driver_flashers.job import Job, end, finish
from jumpstarter_driver_flashers.uboot_stage import Say
from jumpstarter_driver_storage.errors import NOTHING_WRITTEN, StorageFailed, StorageFault, StorageRefused, incomplete
from jumpstarter_driver_storage.record import RecordStore

if TYPE_CHECKING:
    from jumpstarter_driver_flashers.driver import BaseFlasher

__all__ = ["RunBase"]


@dataclass
class RunBase:
    """The state of a run, and what every method of flashing needs."""

    driver: BaseFlasher
    job: Job
    say: Say
    store: RecordStore
    cache: ImageCache
    begun: bool = False
    written: int = 0
    _placed: list[Path] = field(init=False, default_factory=list)

    async def _meanwhile(self, boot: Any) -> StoredImage | None:
        """Boot the board while the image arrives; a broken image ends the boot."""
        booting = asyncio.ensure_future(boot)
        arriving = asyncio.ensure_future(self.job.image) if self.job.image is not None else None
        try:
            if arriving is not None:
                await asyncio.wait({booting, arriving}, return_when=asyncio.FIRST_COMPLETED)
                if arriving.done():
                    arriving.result()
            await booting
            if arriving is None:
                return None
            if not arriving.done():
                self.say("waiting for the image", 0, None)
            return await asyncio.shield(arriving)
        finally:
            await end(booting)

    @asynccontextmanager
    async def _services(self, *names: str) -> AsyncIterator[None]:
        async def stop(name: str) -> None:
            await finish(self.driver.ask(name, "stop"))

        async with AsyncExitStack() as started:
            for name in names:
                if not (await self.driver.ask(name, "status"))["running"]:
                    started.push_async_callback(stop, name)
                    await self.driver.ask(name, "start")
            yield

    async def _tftp_address(self) -> tuple[str, int]:
        return str(await self.driver.ask("tftp", "get_host")), int(await self.driver.ask("tftp", "get_port"))

    async def _place(self, root: Path, source: Path) -> str:
        """A copy of a file where the server looks, under a name that nobody else uses."""
        name = f"jl-{secrets.token_hex(6)}-{source.name}"
        return await self._link(root, source, name, copy=True)

    async def _link(self, root: Path, source: Path, name: str, *, copy: bool = False) -> str:
        # To its end, cancelled or not: a thread that is left alone would make the file after all have been removed.
        linked: str = await call_to_end(self._link_now, root, source, name, copy)
        return linked

    def _link_now(self, root: Path, source: Path, name: str, copy: bool) -> str:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._placed.append(path)
        if not copy:
            try:
                os.link(source, path)
                return name
            except OSError:
                pass  # another file system, or one without links
        shutil.copyfile(source, path)
        return name

    def _write_text(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._placed.append(path)
        path.write_text(text)

    def _begin(self) -> None:
        if not self.begun:
            self.store.invalidate(self.job.checked)
            self.begun = True

    def _as_it_is(self, fault: StorageFault) -> StorageFault:
        """A fault that knows nothing of the attempts before, with the state that these left."""
        return self._fault(fault.message, fault.code) if self.begun and fault.state == NOTHING_WRITTEN else fault

    def _fault(self, message: str, code: Any) -> StorageFault:
        if self.begun:
            return StorageFailed(message, code=code, state=incomplete(self.written), written=self.written)
        return StorageRefused(message, code=code, state=NOTHING_WRITTEN)
