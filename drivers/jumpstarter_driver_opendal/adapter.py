# SPDX-License-Identifier: Apache-2.0
"""Lend a file that opendal reaches from the client to a driver call."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from anyio import EndOfStream
from anyio.abc import ObjectStream

from jumpstarter.client.adapters import ClientAdapter
from jumpstarter.common.resources import PresignedRequestResource

if TYPE_CHECKING:
    from opendal import Operator

__all__ = ["OpendalAdapter"]

_CHUNK = 1 << 20
_EXPIRES = 60
"""Seconds a presigned request is good for: it is used at once."""


class _FileStream(ObjectStream[bytes]):
    """An open file of opendal as the stream that is lent."""

    def __init__(self, file: Any, size: int | None, path: str) -> None:
        self._file = file
        self._left = size
        self._path = path

    async def receive(self) -> bytes:
        data = bytes(await self._file.read(_CHUNK))
        if not data:
            if self._left:
                raise ConnectionError(f"{self._path} ended {self._left} bytes too early")
            raise EndOfStream
        if self._left is not None:
            self._left -= len(data)
        return data

    async def send(self, data: bytes) -> None:
        await self._file.write(data)

    async def send_eof(self) -> None: ...

    async def aclose(self) -> None:
        await self._file.close()


@dataclass(kw_only=True)
class OpendalAdapter(ClientAdapter[dict[str, Any]]):
    """Gives the handle that a driver's call takes.

    operator, path: an `opendal.Operator` and a file it reaches. mode: ``rb`` lends the file for reading, ``wb`` for
    writing. compression: gzip, xz, bz2 or zstd when the file is packed so. original_url: an http(s) address that the
    exporter shall fetch itself, as it stands.

    A storage that can presign lets the exporter fetch by itself; otherwise the data pass through this process.
    """

    operator: Operator | None
    path: str
    mode: Literal["rb", "wb"] = "rb"
    compression: str | None = None
    original_url: str | None = None

    def _open(self, stack: ExitStack) -> dict[str, Any]:
        if self.original_url is not None:
            if self.compression is not None:
                raise ValueError("original_url: compression is not supported, the exporter fetches the file as it is")
            if self.mode == "wb":
                raise ValueError("original_url: is for reading, not for mode wb")
            return _presigned(self.original_url, "GET", {})
        if self.operator is None:
            raise ValueError("an operator is required to open a path")
        portal = self.client.portal
        if self.mode == "rb" and self.compression is None and self.operator.capability().presign_read:
            request = portal.call(self._presign)
            return _presigned(request.url, request.method, dict(request.headers))
        stream = portal.call(self._stream)
        handle: dict[str, Any] = stack.enter_context(
            portal.wrap_async_context_manager(self.client.resource_async(stream, self.compression))
        )
        return handle

    async def _presign(self) -> Any:
        assert self.operator is not None
        return await self.operator.to_async_operator().presign_read(str(self.path), _EXPIRES)

    async def _stream(self) -> _FileStream:
        assert self.operator is not None
        operator = self.operator.to_async_operator()
        size = int((await operator.stat(str(self.path))).content_length) if self.mode == "rb" else None
        return _FileStream(await operator.open(str(self.path), self.mode), size, str(self.path))


def _presigned(url: str, method: str, headers: dict[str, str]) -> dict[str, Any]:
    return PresignedRequestResource(headers=headers, url=url, method="GET" if method == "GET" else "PUT").model_dump(
        mode="json"
    )
