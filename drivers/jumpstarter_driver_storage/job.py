# SPDX-License-Identifier: Apache-2.0
"""One flash, from the first byte of the image to the record: runs in a worker thread, outside the event loop."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from jumpstarter.common.storage import (
    BLOCK_SIZE,
    ZERO_GRAIN,
    Buffer,
    Probe,
    SparseParser,
    SparseStreamError,
    format_size,
    is_zero,
    split_zeros,
)
from jumpstarter.streams.encoding import (
    SIGNATURE_SIZE,
    CompressedDataError,
    Compression,
    Decompressor,
    detect_compression_from_signature,
)
from jumpstarter_driver_storage.digest import BLOCK_DIGEST, DIGEST_SIZE, BlockHasher, HashThread, block_digest
from jumpstarter_driver_storage.errors import (
    NOTHING_WRITTEN,
    JobCancelled,
    StorageFailed,
    StorageFault,
    StorageRefused,
    TransferBroken,
    incomplete,
)
from jumpstarter_driver_storage.record import Record, RecordStore
from jumpstarter_driver_storage.target import Checked, open_for_writing
from jumpstarter_driver_storage.verify import bad_blocks
from jumpstarter_driver_storage.writer import TargetWriter, writer_for

_NOTIFY_EVERY: Final = 0.1
_ZERO_STEP: Final = 64 << 20

Notify = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class FlashOptions:
    """How an image arrives and what to do with it.

    - ``framing``: ``plain`` bytes, or the ``sparse`` stream of `jumpstarter.common.storage`.
    - ``compression``: of plain bytes; ``auto`` looks at the signature, None takes them as they are.
    - ``size``: bytes of the image when the sender knows. ``source_size``: bytes that travel when it knows (plain).
    - ``sha256``: digest the image must have, when the sender knows.
    - ``verify``: read the target back and compare.
    - ``repair``: write these blocks only, checked against the record, which must be of the same image.
    """

    framing: Literal["plain", "sparse"] = "plain"
    compression: Compression | Literal["auto"] | None = None
    size: int | None = None
    source_size: int | None = None
    sha256: str | None = None
    verify: bool = True
    repair: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class FlashReport:
    """What a flash did; sizes in bytes. ``received``: what travelled. ``skipped``: zero without being written."""

    target: str
    size: int
    written: int
    skipped: int
    received: int
    sha256: str
    verified: bool
    repaired_blocks: int
    seconds: float


class FlashJob:
    """`run` in one thread; `cancel` from any other stops it within one chunk."""

    def __init__(self, checked: Checked, store: RecordStore, options: FlashOptions) -> None:
        self._checked = checked
        self._store = store
        self._options = options
        self._notify: Notify = lambda event: None
        self._cancelled = threading.Event()
        self._notified = 0.0
        self._begun = False
        self._received = 0
        self._writer: TargetWriter | None = None
        self._source_hash = hashlib.sha256()
        self._unpacked = False

    def cancel(self) -> None:
        """Stop writing as soon as the current chunk is done; before `run`, it does not begin."""
        self._cancelled.set()

    def run(self, chunks: Iterable[Buffer], notify: Notify) -> FlashReport:
        """Write the image that ``chunks`` carries. ``notify`` gets progress, in this thread.

        Raises StorageRefused when nothing was written, StorageFailed with the state of the target otherwise.
        """
        started = time.monotonic()
        self._notify = notify
        if self._options.size is not None:
            self._checked.refuse_if_larger(self._options.size)
        try:
            with self._store.lock(self._checked):
                fd = open_for_writing(self._checked)
                try:
                    self._writer = writer_for(self._checked, fd)
                    report = self._repair(chunks) if self._options.repair is not None else self._flash(chunks)
                finally:
                    os.close(fd)
        except StorageFault:
            raise
        except (CompressedDataError, SparseStreamError) as error:
            raise self._fault(f"bad image: {error}", "bad_image") from error
        except TransferBroken as error:
            raise self._fault(f"the client stopped sending: {error}", "broken") from error
        except JobCancelled as error:
            raise self._fault("cancelled", "cancelled") from error
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            what = "no space left for it on the exporter host" if full else error.strerror or str(error)
            text = f"writing {self._checked.label} ({self._checked.target.path}) failed: {what}"
            raise self._fault(text, "no_space" if full else "io") from error
        return FlashReport(**report, seconds=time.monotonic() - started)

    # --- a whole image --------------------------------------------------------------------------------------

    def _flash(self, chunks: Iterable[Buffer]) -> dict[str, Any]:
        writer = self._writer
        assert writer is not None
        blocks, probe, sha = BlockHasher(), Probe(), HashThread()
        position = 0
        try:
            for offset, data, length in self._pieces(chunks, sha.then):
                if data is not None and offset + length > (self._checked.capacity or offset + length):
                    self._overflow()
                if not self._begun:
                    self._mark_begun()
                    writer.begin()
                if self._cancelled.is_set():
                    raise JobCancelled
                if data is None:
                    writer.zero(offset, length)
                    blocks.zeros(length)
                    probe.zeros(length)
                    sha.zeros(length)
                else:
                    sha.data(data[:])
                    writer.write(offset, data)
                    blocks.data(data)
                    probe.data(data)
                position = offset + length
                self._progress("writing", position, self._options.size)
            if position == 0:
                raise self._fault("image is empty", "bad_image")
            self._check_promises(position)
            self._progress("syncing", position, position, force=True)
            writer.finish(position)
            digest = sha.finish()
        except BaseException:
            sha.abort()
            raise
        if self._options.sha256 and digest != self._options.sha256:
            raise self._fault(f"image has sha256 {digest}, the sender announced {self._options.sha256}", "bad_image")
        digests = blocks.finish()
        if self._options.verify:
            self._verify(position, digests, None)
        self._save(position, digest, digests, probe.hexdigest())
        return {
            "target": self._checked.name, "size": position, "written": writer.written, "skipped": writer.skipped,
            "received": self._received, "sha256": digest, "verified": self._options.verify, "repaired_blocks": 0,
        }  # fmt: skip

    def _overflow(self) -> None:
        capacity = self._checked.capacity or 0
        raise self._fault(
            f"image is larger than the {format_size(capacity)} that {self._checked.label} holds", "too_large"
        )

    def _check_promises(self, size: int) -> None:
        wanted = self._options
        if wanted.size is not None and size != wanted.size:
            raise self._fault(f"image has {size} bytes, the sender announced {wanted.size}", "bad_image")
        if wanted.source_size is not None and wanted.framing == "plain" and self._received != wanted.source_size:
            raise self._fault(f"{self._received} bytes arrived, the sender announced {wanted.source_size}", "broken")

    # --- repair ---------------------------------------------------------------------------------------------

    def _repair(self, chunks: Iterable[Buffer]) -> dict[str, Any]:
        writer = self._writer
        record = self._store.load(self._checked)
        assert writer is not None
        if record is None or record.state != "valid":
            raise self._fault("there is no valid record of the target to repair it by", "refused")
        if self._options.sha256 and self._options.sha256 != record.sha256:
            raise self._fault("the target was flashed with another image since it was verified", "refused")
        digests = record.block_digests()
        missing = set(self._options.repair or ())
        for number, data in self._whole_blocks(self._pieces(chunks, _at_once), record.size):
            if number not in missing:
                continue
            if block_digest(data) != digests[number * DIGEST_SIZE : (number + 1) * DIGEST_SIZE]:
                raise self._fault(f"block {number} of the image differs from the one that was flashed", "bad_image")
            if not self._begun:
                self._mark_begun()
            offset = number * BLOCK_SIZE
            if is_zero(data):
                writer.zero(offset, len(data))
            else:
                writer.write(offset, memoryview(data))
            missing.discard(number)
            self._progress("repairing", writer.written + writer.skipped, len(self._options.repair or ()) * BLOCK_SIZE)
        if missing:
            raise self._fault(f"{len(missing)} of the blocks to repair did not arrive", "broken")
        writer.finish(None)
        if self._options.verify:
            self._verify(record.size, digests, self._options.repair)
        self._save(record.size, record.sha256, digests, record.probe, record)
        return {
            "target": self._checked.name, "size": record.size, "written": writer.written, "skipped": writer.skipped,
            "received": self._received, "sha256": record.sha256, "verified": self._options.verify,
            "repaired_blocks": len(set(self._options.repair or ())),
        }  # fmt: skip

    @staticmethod
    def _whole_blocks(
        pieces: Iterable[tuple[int, memoryview | None, int]], size: int
    ) -> Iterator[tuple[int, bytearray]]:
        """Pieces gathered into blocks; a block no piece touches does not appear."""
        number, block = -1, bytearray()
        for start, data, length in pieces:
            offset, end = start, start + length
            while offset < min(end, size):
                index, inside = divmod(offset, BLOCK_SIZE)
                if index != number:
                    if number >= 0:
                        yield number, block
                    number, block = index, bytearray(min(BLOCK_SIZE, size - index * BLOCK_SIZE))
                step = min(end - offset, len(block) - inside)
                if data is not None:
                    block[inside : inside + step] = data[offset - start : offset - start + step]
                offset += step
        if number >= 0:
            yield number, block

    # --- pieces of image from what arrives ------------------------------------------------------------------

    def _pieces(
        self, chunks: Iterable[Buffer], when_used: Callable[[Callable[[], None]], None]
    ) -> Iterator[tuple[int, memoryview | None, int]]:
        """``(offset, data or None for zeros, length)`` without gaps, in order, up to the end of the image.

        ``when_used`` is given what releases a chunk, for the time when nothing refers to it any more.
        """
        arriving = self._arriving(chunks, when_used)
        if self._options.framing == "sparse":
            yield from self._sparse_pieces(arriving)
            return
        position = 0
        for chunk in _whole_grains(self._plain(arriving)):
            yield from split_zeros(position, memoryview(chunk))
            position += len(chunk)

    def _sparse_pieces(self, chunks: Iterable[Buffer]) -> Iterator[tuple[int, memoryview | None, int]]:
        parser = SparseParser(self._checked.capacity)
        repairing = self._options.repair is not None
        position = 0
        for chunk in chunks:
            for offset, data in parser.feed(chunk):
                if offset > position and not repairing:
                    yield from _zeros(position, offset)
                yield offset, data, len(data)
                position = offset + len(data)
        size = parser.finish()
        if size > position and not repairing:
            self._fits(size)
            yield from _zeros(position, size)

    def _fits(self, size: int) -> None:
        if self._checked.capacity is not None and size > self._checked.capacity:
            self._overflow()

    def _arriving(self, chunks: Iterable[Buffer], when_used: Callable[[Callable[[], None]], None]) -> Iterator[Buffer]:
        release: Callable[[], None] | None = getattr(chunks, "release", None)
        for chunk in chunks:
            if self._cancelled.is_set():
                raise JobCancelled
            self._received += len(chunk)
            yield chunk
            if release is not None:
                when_used(release)
        if self._cancelled.is_set():
            raise JobCancelled

    def _plain(self, chunks: Iterator[Buffer]) -> Iterator[Buffer]:
        compression = self._options.compression
        if compression == "auto":
            compression, chunks = _sniff(chunks)
        if compression is None:
            yield from chunks
            return
        self._unpacked = True
        decoder = Decompressor(compression)
        for chunk in chunks:
            self._source_hash.update(chunk)
            yield from decoder.feed(chunk)
        decoder.finish()

    # --- common ---------------------------------------------------------------------------------------------

    def _mark_begun(self) -> None:
        """The first write comes next: from here to success the target's record says so."""
        self._store.invalidate(self._checked)
        self._begun = True

    def _verify(self, size: int, digests: bytes, only: Iterable[int] | None) -> None:
        def progress(done: int) -> None:
            if self._cancelled.is_set():
                raise JobCancelled
            self._progress("verifying", done, size if only is None else None)

        wrong = bad_blocks(self._checked, size, digests, only=only, progress=progress)
        if wrong:
            raise self._fault(
                f"verification failed: {len(wrong)} blocks of {format_size(BLOCK_SIZE)} read back differently from "
                f"what was written, the first at byte {wrong[0] * BLOCK_SIZE}", "verify_failed",
            )  # fmt: skip

    def _save(self, size: int, sha256: str, digests: bytes, probe: str, old: Record | None = None) -> None:
        source = (size, sha256)
        if old is not None:
            source = (old.source_size, old.source_sha256)
        elif self._unpacked:
            source = (self._received, self._source_hash.hexdigest())
        record = Record(
            state="valid", key=self._checked.key, path=self._checked.target.path, size=size, sha256=sha256,
            source_size=source[0], source_sha256=source[1], probe=probe, block_size=BLOCK_SIZE, digest=BLOCK_DIGEST,
            blocks=base64.b64encode(digests).decode(), fingerprint=self._checked.fingerprint(), written_at=time.time(),
        )  # fmt: skip
        self._store.save(self._checked, record)

    def _fault(self, message: str, code: Any) -> StorageFault:
        written = self._writer.written if self._writer is not None else 0
        if self._begun:
            return StorageFailed(message, code=code, state=incomplete(written), written=written)
        return StorageRefused(message, code=code, state=NOTHING_WRITTEN)

    def _progress(self, phase: str, done: int, total: int | None, *, force: bool = False) -> None:
        now = time.monotonic()
        if force or now - self._notified >= _NOTIFY_EVERY:
            self._notified = now
            self._notify({"event": "progress", "phase": phase, "done": done, "total": total})


def _zeros(start: int, end: int) -> Iterator[tuple[int, None, int]]:
    """A run of zeros in steps that are short enough to be cancelled between."""
    for offset in range(start, end, _ZERO_STEP):
        yield offset, None, min(_ZERO_STEP, end - offset)


def _at_once(function: Callable[[], None]) -> None:
    function()


def _whole_grains(chunks: Iterable[Buffer]) -> Iterator[Buffer]:
    """The same bytes cut at multiples of the zero grain, so that zeros are seen however the chunks were cut."""
    carry = bytearray()
    for chunk in chunks:
        if not carry and len(chunk) % ZERO_GRAIN == 0:
            yield chunk
            continue
        carry += chunk
        if whole := len(carry) // ZERO_GRAIN * ZERO_GRAIN:
            rest = carry[whole:]
            del carry[whole:]
            yield carry
            carry = rest
    if carry:
        yield carry


def _sniff(chunks: Iterator[Buffer]) -> tuple[Compression | None, Iterator[Buffer]]:
    head = bytearray()
    for chunk in chunks:
        head += chunk
        if len(head) >= SIGNATURE_SIZE:
            break

    def again() -> Iterator[Buffer]:
        if head:
            yield head
        yield from chunks

    return detect_compression_from_signature(bytes(head[:SIGNATURE_SIZE])), again()


__all__ = ["FlashJob", "FlashOptions", "FlashReport"]
