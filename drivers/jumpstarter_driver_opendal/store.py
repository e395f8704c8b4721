# SPDX-License-Identifier: Apache-2.0
"""What a storage has to be able to do, whatever is behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Final

from jumpstarter_driver_opendal.common import Capability, Metadata, Mode, PresignedRequest

__all__ = ["CHUNK", "OpenFile", "Store"]

CHUNK: Final = 1 << 20
"""Bytes per read and write."""


class OpenFile(ABC):
    """An open file. One that is written appears under its name when it is committed, and not before."""

    path: str
    mode: Mode
    size: int | None = None
    """Bytes to read; None when not known or when it is written."""

    @abstractmethod
    async def read(self) -> bytes:
        """The next bytes, empty at the end."""

    @abstractmethod
    async def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""

    @abstractmethod
    async def seek(self, position: int, whence: int) -> int:
        """Move as `io.IOBase.seek` does; gives the new position."""

    @abstractmethod
    async def tell(self) -> int:
        """The position."""

    @abstractmethod
    async def commit(self) -> None:
        """Close; what was written is now the file."""

    @abstractmethod
    def abort(self) -> None:
        """Close; what was written is dropped and the file is as it was. May be called twice."""


class Store(ABC):
    """A storage. Paths are as clients give them; errors are OSError, ValueError or NotImplementedError."""

    @abstractmethod
    async def open(self, path: str, mode: Mode) -> OpenFile:
        """Open for reading or writing."""

    @abstractmethod
    async def stat(self, path: str) -> Metadata:
        """What is known about an entry."""

    @abstractmethod
    async def exists(self, path: str) -> bool:
        """Whether there is such an entry."""

    @abstractmethod
    async def copy(self, source: str, target: str) -> None:
        """Copy a file."""

    @abstractmethod
    async def rename(self, source: str, target: str) -> None:
        """Move a file."""

    @abstractmethod
    async def create_dir(self, path: str) -> bool:
        """Make a folder and those above; False when it was there. The path ends with a slash."""

    @abstractmethod
    async def delete(self, path: str) -> None:
        """Remove a file or an empty folder; nothing happens when there is none."""

    @abstractmethod
    async def remove_all(self, path: str) -> None:
        """Remove an entry with all below it; nothing happens when there is none."""

    @abstractmethod
    def list(self, path: str, *, recursive: bool) -> AsyncIterator[str]:
        """Paths of entries: those in the folder, when the path ends with a slash, else those that begin so."""

    @abstractmethod
    async def presign(self, what: str, path: str, seconds: int) -> PresignedRequest:
        """A request anybody may make for ``seconds``. ``what``: stat, read or write."""

    @abstractmethod
    def capability(self) -> Capability:
        """What it can do."""
