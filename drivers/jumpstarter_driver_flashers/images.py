# SPDX-License-Identifier: Apache-2.0
"""Images on the exporter: received once, kept by the digest of their content, up to a limit."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from jumpstarter.common.storage import BLOCK_SIZE, Buffer, SparseParser, SparseStreamError, format_size
from jumpstarter.streams.encoding import (
    SIGNATURE_SIZE,
    CompressedDataError,
    Compression,
    Decompressor,
    detect_compression_from_signature,
)
from jumpstarter_driver_storage.errors import JobCancelled, StorageRefused, TransferBroken
from jumpstarter_driver_storage.job import FlashOptions

__all__ = ["ImageCache", "Intake", "StoredImage"]

_ZEROS: Final = bytes(BLOCK_SIZE)


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image in the cache.

    path: the file. compression: how it is packed, None when it is not. size, sha256: of the unpacked image.
    stored_size, stored_sha256: of the file. stored_at: when it was written last, in nanoseconds since 1970.
    """

    path: Path
    compression: str | None
    size: int
    sha256: str
    stored_size: int
    stored_sha256: str
    stored_at: int = 0

    def chunks(self) -> Iterator[Buffer]:
        """The unpacked image, in pieces of any size. Blocking; raises StorageRefused when the file is damaged."""
        decoder = Decompressor(Compression(self.compression)) if self.compression else None
        try:
            with open(self.path, "rb") as file:
                while data := file.read(BLOCK_SIZE):
                    if decoder is None:
                        yield data
                    else:
                        yield from decoder.feed(data)
            if decoder is not None:
                decoder.finish()
        except (CompressedDataError, OSError) as error:
            raise StorageRefused(f"the exporter's copy of the image cannot be read: {error}", code="io") from error


class ImageCache:
    """A folder of images. limit: bytes it may hold; the one that is in use stays whatever its size."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder / "images"
        self._limit = limit

    def find(self, sha256: str) -> StoredImage | None:
        """The image with this content, None when it is not here."""
        facts = self.folder / f"{sha256}.json"
        try:
            image = _load(facts)
            info = os.stat(image.path)
            if info.st_size != image.stored_size or info.st_mtime_ns != image.stored_at:
                return None  # somebody wrote to it: the HTTP server's folder may hold a link to it
            os.utime(facts)
        except (OSError, ValueError, TypeError, KeyError):  # not there, or damaged: as good as not there
            return None
        return image

    def incoming(self) -> tuple[int, Path]:
        """A new file for an image, open and locked; what a killed exporter left in the folder is removed."""
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._sweep()
        while True:
            fd, name = tempfile.mkstemp(prefix=".incoming-", dir=self.folder)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if os.fstat(fd).st_nlink:  # else somebody who was sweeping took it for a left-over before it was locked
                    return fd, Path(name)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _sweep(self) -> None:
        for path in self.folder.glob(".incoming-*"):
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                finally:
                    os.close(fd)

    def keep(self, path: Path, image: StoredImage) -> StoredImage:
        """Take over a complete file."""
        place = self.folder / f"{image.sha256}.img"
        kept = StoredImage(**{**asdict(image), "path": place, "stored_at": os.stat(path).st_mtime_ns})
        fd, temporary = tempfile.mkstemp(prefix=".facts-", dir=self.folder)
        try:
            with os.fdopen(fd, "w") as file:
                json.dump({**asdict(kept), "path": place.name}, file)
            # the facts first: facts without their image are noticed, an image without facts would stay for ever
            os.replace(temporary, self.folder / f"{image.sha256}.json")
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        os.replace(path, place)
        self.prune(keep=image.sha256)
        return kept

    def prune(self, keep: str = "") -> None:
        """Remove the images that were not used for the longest time until the rest is within the limit."""
        found = []
        for facts in self.folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                found.append((facts.stat().st_mtime, facts, os.stat(_load(facts).path).st_blocks * 512))
        total = sum(size for _, _, size in found)
        for _, facts, size in sorted(found):
            if total <= self._limit:
                return
            if facts.stem != keep:
                facts.unlink(missing_ok=True)
                facts.with_suffix(".img").unlink(missing_ok=True)
                total -= size


class Intake:
    """Writes what arrives into a cache: `run` in a worker thread, `cancel` from any other."""

    def __init__(self, cache: ImageCache, options: FlashOptions) -> None:
        self._cache = cache
        self._options = options
        self._notify: Callable[[dict[str, Any]], None] = lambda event: None
        self._cancelled = threading.Event()
        self._content = hashlib.sha256()
        self._stored = hashlib.sha256()
        self._size = 0
        self._told = 0
        self.received = 0

    def cancel(self) -> None:
        """End at the next piece."""
        self._cancelled.set()

    def run(
        self, chunks: Iterable[Buffer], notify: Callable[[dict[str, Any]], None] = lambda event: None
    ) -> StoredImage:
        """Store the image that arrives. Raises StorageRefused; nothing of it is left then."""
        self._notify = notify
        path: Path | None = None
        try:
            fd, path = self._cache.incoming()
            try:
                os.fchmod(fd, 0o644)
                compression = self._receive(fd, chunks)
                stored = os.lseek(fd, 0, os.SEEK_END)
            finally:
                os.close(fd)
            content = self._content.hexdigest()
            self._check(content, compression)
            return self._cache.keep(
                path,
                StoredImage(
                    path=path, compression=compression, size=self._size, sha256=content, stored_size=stored,
                    stored_sha256=self._stored.hexdigest() if compression else content,
                ),
            )  # fmt: skip
        except (CompressedDataError, SparseStreamError) as error:
            raise StorageRefused(f"bad image: {error}", code="bad_image") from error
        except TransferBroken as error:
            raise StorageRefused(f"the client stopped sending: {error}", code="broken") from error
        except JobCancelled as error:
            raise StorageRefused("cancelled", code="cancelled") from error
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            what = "no space left for it" if full else error.strerror or str(error)
            raise StorageRefused(
                f"storing the image in {self._cache.folder} failed: {what}", code="no_space" if full else "io"
            ) from error
        finally:
            if path is not None:
                path.unlink(missing_ok=True)

    def _receive(self, fd: int, chunks: Iterable[Buffer]) -> str | None:
        release = getattr(chunks, "release", lambda: None)
        parser = SparseParser(None) if self._options.framing == "sparse" else None
        compression = self._options.compression
        decoder: Decompressor | None = None
        head = b""
        looking = parser is None and compression == "auto"
        if parser is None and compression not in (None, "auto"):
            decoder = Decompressor(Compression(compression))
        for chunk in chunks:
            if self._cancelled.is_set():
                raise JobCancelled
            self.received += len(chunk)
            data: Buffer = chunk
            if looking:
                head += bytes(chunk)
                if len(head) < SIGNATURE_SIZE:
                    release()
                    continue
                data, looking = head, False
                found = detect_compression_from_signature(head[:SIGNATURE_SIZE])
                decoder = Decompressor(found) if found is not None else None
                compression = found
            if parser is not None:
                for offset, piece in parser.feed(data):
                    self._gap(offset)
                    _write(fd, piece, offset)
                    self._add(piece)
            else:
                self._plain(fd, data, decoder)
            release()
            self._progress()
        if looking:  # shorter than any signature
            compression = None
            self._plain(fd, head, None)
        if parser is not None:
            size = parser.finish()
            self._gap(size)
            os.ftruncate(fd, size)
        if decoder is not None:
            decoder.finish()
        return str(compression) if decoder is not None else None

    def _plain(self, fd: int, data: Buffer, decoder: Decompressor | None) -> None:
        view = memoryview(data)
        os_written = 0
        while os_written < len(view):
            os_written += os.write(fd, view[os_written:])
        if decoder is None:
            self._add(view)
            return
        self._stored.update(view)
        for piece in decoder.feed(data):
            self._add(piece)

    def _add(self, piece: Buffer) -> None:
        self._content.update(piece)
        self._size += len(piece)

    def _gap(self, end: int) -> None:
        while self._size < end:
            if self._cancelled.is_set():
                raise JobCancelled
            step = min(BLOCK_SIZE, end - self._size)
            self._add(_ZEROS if step == BLOCK_SIZE else _ZEROS[:step])

    def _check(self, content: str, compression: str | None) -> None:
        wanted = self._options
        if self._size == 0:
            raise StorageRefused("image is empty", code="bad_image")
        if wanted.size is not None and self._size != wanted.size:
            raise StorageRefused(f"image has {self._size} bytes, the sender announced {wanted.size}", code="bad_image")
        if wanted.source_size is not None and wanted.framing == "plain" and self.received != wanted.source_size:
            raise StorageRefused(
                f"{self.received} bytes arrived, the sender announced {wanted.source_size}", code="broken"
            )
        if wanted.sha256 and content != wanted.sha256:
            raise StorageRefused(f"image has sha256 {content}, the sender announced {wanted.sha256}", code="bad_image")

    def _progress(self) -> None:
        if self.received - self._told >= 8 << 20:
            self._told = self.received
            total = self._options.source_size if self._options.framing == "plain" else None
            self._notify({"event": "progress", "phase": "receiving", "done": self.received, "total": total})


def _write(fd: int, data: Buffer, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def _load(facts: Path) -> StoredImage:
    data = json.loads(facts.read_text())
    name = str(data["path"])
    if os.sep in name:
        raise ValueError(f"{facts}: {name!r} is no file name")
    return StoredImage(**{**data, "path": facts.parent / name})


def describe(image: StoredImage) -> str:
    """For messages."""
    packed = f" ({image.compression})" if image.compression else ""
    return f"{format_size(image.size)}{packed}"
