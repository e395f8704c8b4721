# SPDX-License-Identifier: Apache-2.0
"""What one flash shall do, what came of it, and the record of that."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

from jumpstarter_driver_flashers.images import StoredImage
from jumpstarter_driver_flashers.wish import Wish
from jumpstarter_driver_storage.record import Record, RecordStore
from jumpstarter_driver_storage.target import Checked

__all__ = ["Job", "Outcome", "end", "finish", "save_record"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to do. target: its name. device: as manifest or configuration name it. image: comes while the board boots.

    Without an image the target is only compared with ``record``.
    """

    target: str
    device: str
    method: str
    wish: Wish
    verify: bool
    checked: Checked
    image: Awaitable[StoredImage] | None = None
    record: Record | None = None
    direct_size: int = 0
    direct_sha256: str = ""


@dataclass(frozen=True)
class Outcome:
    """What the board holds now. blocks: crc32 of each ``block_size`` bytes where U-Boot wrote (empty otherwise)."""

    size: int
    sha256: str
    written: int
    verified: bool
    same: bool = True
    blocks: bytes = b""
    block_size: int = 0
    source_size: int = 0
    source_sha256: str = ""


def save_record(store: RecordStore, checked: Checked, device: str, outcome: Outcome) -> None:
    """Remember what the board's disk holds now."""
    store.save(
        checked,
        Record(
            state="valid", key=checked.key, path=device, size=outcome.size, sha256=outcome.sha256,
            source_size=outcome.source_size, source_sha256=outcome.source_sha256, block_size=outcome.block_size,
            digest="crc32" if outcome.blocks else "sha256", blocks=base64.b64encode(outcome.blocks).decode(),
            written_at=time.time(),
        ),
    )  # fmt: skip


async def end(task: asyncio.Future[Any]) -> None:
    """Cancel a task and wait until it has ended, even when the caller is being cancelled meanwhile."""
    if not task.done():
        task.cancel()
        await finish(asyncio.wait([task]))
    if not task.cancelled():
        task.exception()  # who cancels does not want to know


async def finish(work: Awaitable[T]) -> T:
    """Do it to its end even when the caller is being cancelled meanwhile; the cancellation comes afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                break
            cancelled = error
        except Exception:  # noqa: BLE001 - raised below, from the task itself
            break
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result
