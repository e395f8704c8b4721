# SPDX-License-Identifier: Apache-2.0
"""The local file an image comes from: what it is, what is in it, and whether it is whole."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from jumpstarter.client.imaging.cache import Facts, FileKey, load_facts, save_facts
from jumpstarter.client.imaging.result import ImagingError
from jumpstarter.common.storage import BLOCK_SIZE
from jumpstarter.streams.archive import inspect_archive
from jumpstarter.streams.encoding import (
    SIGNATURE_SIZE,
    CompressedDataError,
    Compression,
    Decompressor,
    detect_compression_from_signature,
)

__all__ = ["Cancelled", "CompressionChoice", "LocalImage"]

CompressionChoice = Compression | Literal["auto", "none"] | str | None

_SETTLED = 2_000_000_000
"""Nanoseconds: the coarsest time stamps of file systems."""

Report = Callable[[str, int, int | None], None]


class Cancelled(Exception):
    """Raised in a worker thread whose result nobody wants any more."""


class LocalImage:
    """An open image file. Methods that read much (`identify`, `prove`, `verify_checksum`) belong in a worker thread;
    `cancel` ends them."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        compression: CompressionChoice = "auto",
        name: str | None = None,
        *,
        may_be_empty: bool = False,
    ) -> None:
        """Open; raises ImagingError when there is no such file, or it is empty or no file. ``name``: what messages
        call it instead of ``path``."""
        self.path = name or os.fspath(path)
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ImagingError(f"image {self.path} does not exist", code="source") from None
        except OSError as error:
            raise ImagingError(f"image {self.path} cannot be read: {error.strerror}", code="source") from error
        try:
            info = os.fstat(self.fd)
            if not (stat.S_ISREG(info.st_mode) or stat.S_ISBLK(info.st_mode)):
                raise ImagingError(f"image {self.path} is no file", code="source")
            self.size = os.lseek(self.fd, 0, os.SEEK_END)
            if self.size == 0 and not may_be_empty:
                raise ImagingError(f"image {self.path} is empty", code="source")
            self.compression = self._choose(compression)
            self._opened = os.fspath(path)
            self.key = FileKey.of(self._opened, self.fd)
        except BaseException:
            os.close(self.fd)
            raise
        # a device does not tell when it was written to, and a file without a name will not be seen again
        self._kept = stat.S_ISREG(info.st_mode) and info.st_nlink > 0
        self.facts = load_facts(self.key) if self._kept else Facts()
        self._cancelled = threading.Event()

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)

    def cancel(self) -> None:
        """End what reads the file in another thread."""
        self._cancelled.set()

    @property
    def content_size(self) -> int | None:
        """Bytes of the image in the file, None while not known."""
        return self.size if self.compression is None else self.facts.content_size

    def learn(self, facts: Facts) -> None:
        """Remember something about the file, unless it has changed since it was opened."""
        self.facts = self.facts.merged(facts)
        # a file that was written just now can be written again without getting another time
        settled = time.time_ns() - self.key.mtime_ns > _SETTLED
        if self._kept and settled and not self.changed():
            save_facts(self.key, self.facts)

    def changed(self) -> bool:
        """Whether somebody wrote to the file since it was opened."""
        return FileKey.of(self._opened, self.fd) != self.key

    def require_unchanged(self) -> None:
        """Raise ImagingError when somebody did."""
        if self.changed():
            raise ImagingError(f"image {self.path} was changed while it was being read", code="source")

    def prove(self, report: Report) -> None:
        """Make sure that a compressed file is whole and how large its content is; raises ImagingError when it is not.

        xz and zstd tell by their structure; gzip, bz2, and zstd without a size are decoded once (and remembered).
        """
        if self.compression is None or self.facts.complete:
            return
        try:
            archive = inspect_archive(self.fd, self.compression)
            if archive.size is not None:
                if archive.size == 0:
                    raise ImagingError(f"image {self.path} holds no data", code="bad_image")
                self.facts = self.facts.merged(Facts(content_size=archive.size))
                return
            self._decode(report)
        except CompressedDataError as error:
            raise ImagingError(f"image {self.path}: {error}", code="bad_image") from error

    def source_sha256(self, report: Report) -> str:
        """sha256 of the file."""
        if not self.facts.source_sha256:
            digest = hashlib.sha256()
            done = 0
            for chunk in self.chunks():
                digest.update(chunk)
                done += len(chunk)
                report("hashing", done, self.size)
            self.require_unchanged()
            facts = Facts(source_sha256=digest.hexdigest())
            if self.compression is None:
                facts = Facts(
                    source_sha256=digest.hexdigest(), content_sha256=digest.hexdigest(), content_size=self.size
                )
            self.learn(facts)
        return self.facts.source_sha256

    def verify_checksum(self, checksum: str, report: Report) -> None:
        """Raise ImagingError unless the file has this checksum (``sha256:hex`` or the bare hex digits)."""
        algorithm, _, wanted = checksum.strip().lower().rpartition(":")
        if algorithm not in ("", "sha256") or len(wanted) != 64 or set(wanted) - set("0123456789abcdef"):
            raise ImagingError(f"checksum {checksum!r} is no sha256:<64 hex digits>", code="refused")
        actual = self.source_sha256(report)
        if actual != wanted:
            raise ImagingError(f"image {self.path} has sha256 {actual}, expected {wanted}", code="checksum")

    def chunks(self) -> Iterator[bytes]:
        """The bytes of the file in blocks."""
        offset = 0
        while data := os.pread(self.fd, BLOCK_SIZE, offset):
            if self._cancelled.is_set():
                raise Cancelled
            offset += len(data)
            yield data

    def plain_chunks(self) -> Iterator[bytes]:
        """The bytes of the image in the file; CompressedDataError when it is not whole."""
        if self.compression is None:
            yield from self.chunks()
            return
        decoder = Decompressor(self.compression)
        for chunk in self.chunks():
            yield from decoder.feed(chunk)
        decoder.finish()

    def _decode(self, report: Report) -> None:
        assert self.compression is not None
        source, content = hashlib.sha256(), hashlib.sha256()
        decoder = Decompressor(self.compression)
        done = size = 0
        for chunk in self.chunks():
            source.update(chunk)
            done += len(chunk)
            for plain in decoder.feed(chunk):
                content.update(plain)
                size += len(plain)
                if self._cancelled.is_set():
                    raise Cancelled
            report("checking", done, self.size)
        decoder.finish()
        self.require_unchanged()
        if size == 0:
            raise ImagingError(f"image {self.path} holds no data", code="bad_image")
        self.learn(
            Facts(
                source_sha256=source.hexdigest(), content_sha256=content.hexdigest(), content_size=size, complete=True
            )
        )

    def _choose(self, wanted: CompressionChoice) -> Compression | None:
        found = detect_compression_from_signature(os.pread(self.fd, SIGNATURE_SIZE, 0))
        if wanted in (None, "none"):
            return None
        if wanted == "auto":
            suffix = _SUFFIXES.get(Path(self.path).suffix.lower())
            if suffix is not None and found is not suffix:
                is_now = f"but holds {found} data" if found else "but holds something else"
                raise ImagingError(f"image {self.path} is named like {suffix} data {is_now}", code="bad_image")
            return found
        try:
            chosen = Compression(str(wanted))
        except ValueError:
            known = ", ".join(("auto", "none", *Compression))
            raise ImagingError(f"compression {wanted!r} is none of {known}", code="refused") from None
        if found is not chosen:
            raise ImagingError(f"image {self.path} is no {chosen} data", code="bad_image")
        return chosen


_SUFFIXES = {
    ".gz": Compression.GZIP, ".xz": Compression.XZ, ".bz2": Compression.BZ2, ".zst": Compression.ZSTD,
    ".zstd": Compression.ZSTD,
}  # fmt: skip
