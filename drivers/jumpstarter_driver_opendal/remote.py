# SPDX-License-Identifier: Apache-2.0
"""Storages that the library opendal reaches: s3, http, webdav, memory, ... (https://opendal.apache.org/services)."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_driver_opendal.common import Capability, EntryMode, Metadata, Mode, PresignedRequest
from jumpstarter_driver_opendal.store import CHUNK, OpenFile, Store

__all__ = ["RemoteStore"]

_FILE_SUFFIX = "_file"


class RemoteFile(OpenFile):
    """A file of a remote storage."""

    def __init__(self, file: Any, path: str, mode: Mode, size: int | None) -> None:
        self.path, self.mode, self.size = path, mode, size
        self._file: Any = file
        self._position = 0

    @property
    def _open(self) -> Any:
        if self._file is None:
            raise ValueError(f'file "{self.path}" is closed')
        return self._file

    async def read(self) -> bytes:
        if self.mode != "rb":
            raise ValueError(f'file "{self.path}" is open for writing')
        with _plain_errors(self.path):
            data = bytes(await self._open.read(CHUNK))
        if not data and self.size is not None and self._position < self.size:
            raise ConnectionError(f'"{self.path}" ended after {self._position} of {self.size} bytes')
        self._position += len(data)
        return data

    async def write(self, data: bytes | memoryview) -> None:
        if self.mode != "wb":
            raise ValueError(f'file "{self.path}" is open for reading')
        with _plain_errors(self.path):
            await self._open.write(bytes(data))
        self._position += len(data)

    async def seek(self, position: int, whence: int) -> int:
        if self.mode == "wb":
            raise ValueError(f'seek: file "{self.path}" of a remote storage is written from start to end')
        with _plain_errors(self.path):
            self._position = int(await self._open.seek(position, whence))
        return self._position

    async def tell(self) -> int:
        return self._position

    async def commit(self) -> None:
        file, self._file = self._open, None
        with _plain_errors(self.path):
            await file.close()

    def abort(self) -> None:
        # what was not closed was never completed: the storage shows the file as it was
        self._file = None


class RemoteStore(Store):
    """A storage of opendal. ``kwargs``: its settings; ``<name>_file`` gives a file that holds the one called name."""

    def __init__(self, scheme: str, kwargs: Mapping[str, str]) -> None:
        self.scheme = scheme
        self._kwargs = dict(kwargs)
        self._operator: Any = None
        self._secret_files = {key: value for key, value in kwargs.items() if key.endswith(_FILE_SUFFIX)}
        for key, value in self._secret_files.items():
            if key.removesuffix(_FILE_SUFFIX) in kwargs:
                raise ConfigurationError(f"field kwargs: has both {key.removesuffix(_FILE_SUFFIX)} and {key}")
            if not Path(value).is_file():
                raise ConfigurationError(f"field kwargs: {key} {value} is no file")
        if not self._secret_files:
            self._operator = self._make(self._kwargs)

    def _make(self, kwargs: Mapping[str, str]) -> Any:
        from opendal import AsyncOperator

        try:
            return AsyncOperator(self.scheme, **kwargs)
        except _opendal_errors() + (ValueError, TypeError) as error:
            raise ConfigurationError(f"opendal does not take scheme {self.scheme}: {_first_line(error)}") from None

    @property
    def operator(self) -> Any:
        """The `opendal.AsyncOperator`."""
        if self._operator is None:
            read = {
                key.removesuffix(_FILE_SUFFIX): Path(value).read_text().strip()
                for key, value in self._secret_files.items()
            }
            plain = {key: value for key, value in self._kwargs.items() if key not in self._secret_files}
            self._operator = self._make({**plain, **read})
        return self._operator

    async def open(self, path: str, mode: Mode) -> RemoteFile:
        with _plain_errors(path):
            size = int((await self.operator.stat(path)).content_length) if mode == "rb" else None
            return RemoteFile(await self.operator.open(path, mode), path, mode, size)

    async def stat(self, path: str) -> Metadata:
        with _plain_errors(path):
            found = await self.operator.stat(path)
        return Metadata(
            content_disposition=found.content_disposition, content_length=found.content_length,
            content_md5=found.content_md5, content_type=found.content_type, etag=found.etag,
            mode=EntryMode(entry_is_file=found.mode.is_file(), entry_is_dir=found.mode.is_dir()),
        )  # fmt: skip

    async def exists(self, path: str) -> bool:
        with _plain_errors(path):
            return bool(await self.operator.exists(path))

    async def copy(self, source: str, target: str) -> None:
        with _plain_errors(source):
            await self.operator.copy(source, target)

    async def rename(self, source: str, target: str) -> None:
        with _plain_errors(source):
            await self.operator.rename(source, target)

    async def create_dir(self, path: str) -> bool:
        with _plain_errors(path):
            new = not await self.operator.exists(path)
            await self.operator.create_dir(path)
        return new

    async def delete(self, path: str) -> None:
        with _plain_errors(path):
            await self.operator.delete(path)

    async def remove_all(self, path: str) -> None:
        with _plain_errors(path):
            await self.operator.remove_all(path)

    async def list(self, path: str, *, recursive: bool) -> AsyncIterator[str]:
        with _plain_errors(path):
            entries = await (self.operator.scan(path) if recursive else self.operator.list(path))
            async for entry in entries:
                yield str(entry.path)

    async def presign(self, what: str, path: str, seconds: int) -> PresignedRequest:
        with _plain_errors(path):
            made = await getattr(self.operator, f"presign_{what}")(path, seconds)
        return PresignedRequest(url=made.url, method=made.method, headers=dict(made.headers))

    def capability(self) -> Capability:
        return Capability.of(self.operator.capability())


def _first_line(error: BaseException) -> str:
    # opendal's texts go on with a context that may quote the request, and a backtrace
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@functools.cache
def _opendal_errors() -> tuple[type[Exception], ...]:
    """All exceptions of opendal; they have no base class in common."""
    from opendal import exceptions

    return tuple(value for value in vars(exceptions).values() if isinstance(value, type))


@contextmanager
def _plain_errors(path: str) -> Iterator[None]:
    """Errors of opendal as those of Python, in one line."""
    from opendal import exceptions

    try:
        yield
    except exceptions.NotFound:
        raise FileNotFoundError(2, f'"{path}" is not there') from None
    except exceptions.PermissionDenied as error:
        raise PermissionError(13, f'"{path}": {_first_line(error)}') from None
    except exceptions.Unsupported as error:
        raise NotImplementedError(f'"{path}": {_first_line(error)}') from None
    except exceptions.ConfigInvalid as error:
        raise ValueError(f'"{path}": {_first_line(error)}') from None
    except _opendal_errors() as error:
        raise OSError(5, f'"{path}": {_first_line(error)}') from None
