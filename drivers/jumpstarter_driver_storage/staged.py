# SPDX-License-Identifier: Apache-2.0
"""Flashers whose device is not a file: the image is staged on the exporter, then a tool carries it over.

The staged image is checked as any flashed file is (digest, size, compression). Only when the device has it too, its
record becomes valid; so an image is skipped only if the device was seen to hold it.
"""

from __future__ import annotations

import contextlib
import shutil
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jumpstarter.common.storage import BLOCK_SIZE
from jumpstarter.driver import export
from jumpstarter_driver_storage.errors import StorageFailed, StorageRefused
from jumpstarter_driver_storage.flasher import Event, ImageFlasher
from jumpstarter_driver_storage.job import FlashOptions
from jumpstarter_driver_storage.record import Record, RecordStore, default_folder
from jumpstarter_driver_storage.target import Checked, Target, check

__all__ = ["StagedFlasher"]


class _StagedRecords(RecordStore):
    """Keeps a record back until the device holds what it describes."""

    def __init__(self, folder: str | None) -> None:
        super().__init__(folder)
        self._held: dict[str, Record] = {}

    def save(self, checked: Checked, record: Record) -> None:
        """The image is staged."""
        self._held[checked.key] = record

    def commit(self, checked: Checked, keep: bool) -> None:
        """The device has it. keep: write the record."""
        record = self._held.pop(checked.key, None)
        if keep and record is not None:
            super().save(checked, record)


@dataclass(kw_only=True)
class StagedFlasher(ImageFlasher):
    """Base of such flashers. ``staging_dir``: folder for staged images (default: beside the records)."""

    #: Whether `device_holds` can tell; without, every flash writes.
    can_verify: ClassVar[bool] = True

    staging_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._records = self._store = _StagedRecords(self.state_dir)

    # --- what a driver provides -----------------------------------------------------------------------------

    @abstractmethod
    def parse_target(self, name: str | None) -> str:
        """The canonical name of a target a client named (None: the default). Raises ValueError."""

    @abstractmethod
    def write_device(self, name: str, path: Path) -> AsyncGenerator[tuple[str, int, int | None], None]:
        """Put the staged image onto the device: yields ``(phase, done, total)``, returns when it is there.

        Raises StorageRefused when the device was not touched, StorageFailed with its state otherwise.
        """

    @property
    def confirms(self) -> bool:
        """Whether `write_device` reads back what it wrote."""
        return self.can_verify

    async def device_holds(self, name: str, path: Path) -> bool:
        """Whether the device holds the staged image."""
        raise NotImplementedError

    # --- targets --------------------------------------------------------------------------------------------

    def storage_targets(self) -> Mapping[str, Target]:
        """The default one; others come by name."""
        return dict([self.find_target(None)])

    def find_target(self, name: str | None) -> tuple[str, Target]:
        """Where the image for a target is staged."""
        wanted = self.parse_target(name)
        folder = self.staging_folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageRefused(f"staging folder {folder}: {error.strerror}", code="permission") from error
        return wanted, Target(path=str(folder / f"{wanted.replace('/', '_')}.bin"), kind="file")

    @property
    def staging_folder(self) -> Path:
        """Folder of this driver's staged images."""
        base = Path(self.staging_dir).expanduser() if self.staging_dir else default_folder() / "staged"
        return base / str(self.uuid)

    def forget_images(self) -> None:
        """The device no longer holds what was written to it."""
        shutil.rmtree(self.staging_folder, ignore_errors=True)

    # --- calls ----------------------------------------------------------------------------------------------

    @export(readonly=True)
    async def verify_image(self, target: str | None = None) -> AsyncIterator[Event]:
        """Compare the device with what was written last; a device that differs anywhere differs everywhere."""
        result: Event = {}
        comparing: Any = super().verify_image(target)
        async with aclosing(comparing) as events:
            async for event in events:
                if event["event"] == "result":
                    result = event
                else:
                    yield event
        name, found = self.find_target(target)
        if not result["bad"] and not await self.device_holds(name, Path(found.path)):
            count = max(1, -(-int(result["size"]) // BLOCK_SIZE))
            result |= {"bad": count, "bad_blocks": [[0, count]]}
        yield result

    # --- how ------------------------------------------------------------------------------------------------

    async def _transfer(self, source: Any, checked: Checked, options: FlashOptions) -> AsyncGenerator[Event, None]:
        async with aclosing(self._carry(super()._transfer(source, checked, options), checked)) as events:
            async for event in events:
                yield event

    async def _receive(
        self, wanted: Mapping[str, Any], checked: Checked, options: FlashOptions
    ) -> AsyncGenerator[Event, None]:
        async with aclosing(self._carry(super()._receive(wanted, checked, options), checked)) as events:
            async for event in events:
                yield event

    async def _carry(self, staging: AsyncGenerator[Event, None], checked: Checked) -> AsyncGenerator[Event, None]:
        result: Event = {}
        async with aclosing(staging):
            async for event in staging:
                if event["event"] == "result":
                    result = event
                else:
                    yield event
        path = Path(checked.target.path)
        # Images at other addresses may be overwritten by this one; what is not known is written again.
        for other in path.parent.iterdir():
            if other != path:
                with contextlib.suppress(FileNotFoundError):
                    other.unlink()
        try:
            async with aclosing(self.write_device(checked.name, path)) as steps:
                async for phase, done, total in steps:
                    yield {"event": "progress", "phase": phase, "done": done, "total": total}
        except TimeoutError as error:
            raise StorageFailed(f"{checked.label}: {error}", code="io", state="the device is incomplete") from error
        self._records.commit(checked, self.can_verify)
        # Repaired or not, tools carry over all of it.
        yield {**result, "written": int(result["size"]), "skipped": 0, "verified": self.confirms}

    def look(self, name: str | None) -> Checked:
        """The staged image of a target, as it is now."""
        wanted, found = self.find_target(name)
        return check(wanted, found, self.owner)
