# SPDX-License-Identifier: Apache-2.0
"""Files into and out of an exporter's storage: sent only when they are not there, proved when they were sent."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from os import PathLike
from typing import Any

from anyio import BrokenResourceError, ClosedResourceError

from jumpstarter.client.aio import AsyncNode
from jumpstarter.client.imaging.direct import NoDirectWay, connect_direct, direct_way, send_direct
from jumpstarter.client.imaging.download import local_copy
from jumpstarter.client.imaging.dumping import DumpResult, dump
from jumpstarter.client.imaging.result import ImagingError, Meter, ProgressCallback
from jumpstarter.client.imaging.sender import send_all
from jumpstarter.client.imaging.source import Cancelled, LocalImage
from jumpstarter.common.exceptions import ConnectionError, DriverError

__all__ = ["PutResult", "get", "put"]

_NOTHING = "nothing was stored"
_PARTLY = "the file in the storage may be incomplete"
"""After a failure with exporters that write to the file itself."""


@dataclass(frozen=True, kw_only=True)
class PutResult:
    """What a put did (or, in check mode, would do).

    ``path``: of the file in the storage. ``size`` in bytes, ``sha256`` of its content. ``reason``: why it was sent or
    not. ``seconds``: all of it.
    """

    changed: bool
    path: str
    size: int
    sha256: str
    reason: str
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values by field name."""
        return asdict(self)


async def put(
    node: AsyncNode,
    src: str | PathLike[str],
    dest: str,
    *,
    force: bool = False,
    check: bool = False,
    checksum: str | None = None,
    progress: ProgressCallback | None = None,
    where: str | None = None,
) -> PutResult:
    """Make ``dest`` in the storage ``node`` the file ``src`` (a path, or an http or https URL).

    Nothing is sent when it is that already. ``force`` sends it anyway, ``check`` only tells. ``checksum``: the
    ``sha256:...`` that ``src`` must have. ``where``: how errors name the exporter. Raises ImagingError; the file in the
    storage is then as it was.
    """
    started = time.monotonic()
    meter = Meter(progress)
    try:
        async with local_copy(src, meter) as (path, name):
            image = await asyncio.to_thread(LocalImage, path, "none", name, may_be_empty=True)
            try:
                job = _Put(node, image, dest, meter)
                if checksum is not None or check or not force:
                    await job.identify(checksum)
                result = await job.run(force, check)
            finally:
                image.close()
    except ImagingError as error:
        raise error.at(where) from None
    return replace(result, seconds=round(time.monotonic() - started, 3))


async def get(
    node: AsyncNode, src: str, dest: str | PathLike[str], *, progress: ProgressCallback | None = None
) -> DumpResult:
    """Copy the file ``src`` of the storage ``node`` to the local file ``dest``. Raises ImagingError."""
    async with _translated(f"{dest} was not written"):
        handle = await node.call("open", src, "rb")
        try:
            return await dump(
                node, dest, progress=progress, method="file_read", arguments=lambda stream: (handle, stream)
            )
        finally:
            await node.call("file_close", handle)


@dataclass
class _Put:
    node: AsyncNode
    image: LocalImage
    dest: str
    meter: Meter

    async def identify(self, checksum: str | None) -> None:
        """Learn the digest of what shall be sent."""

        def work() -> None:
            if checksum is not None:
                self.image.verify_checksum(checksum, self.meter.tell)
            self.image.source_sha256(self.meter.tell)

        task = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            self.image.cancel()
            try:
                await task
            except (Cancelled, ImagingError):
                pass  # nobody wants to know any more
            raise

    @property
    def sha256(self) -> str:
        return self.image.facts.source_sha256

    @property
    def _state(self) -> str:
        """What the storage has after a failure."""
        return _NOTHING if self.node.has_method("put_file") else _PARTLY

    async def run(self, force: bool, check: bool) -> PutResult:
        async with _translated():
            reason = "forced" if force else await self._difference()
        if reason is not None and not check:
            async with _translated(self._state):
                await self._send_and_prove()
        return PutResult(
            changed=reason is not None, path=self.dest, size=self.image.size, sha256=self.sha256,
            reason=reason or "the storage has this file",
        )  # fmt: skip

    async def _send_and_prove(self) -> None:
        if self.sha256:
            await self._send()  # the exporter compares before it stores
            return
        hashing = asyncio.create_task(self.identify(None))  # nobody asked for the digest before: meanwhile, then
        try:
            found = await self._send()
            await hashing
        finally:
            hashing.cancel()
            await asyncio.gather(hashing, return_exceptions=True)
        if found != self.sha256:
            await self.node.call("delete", self.dest)
            raise ImagingError(
                f"{self.dest} has sha256 {found} after it was sent, expected {self.sha256}", code="verify_failed",
                state="it was removed from the storage",
            )  # fmt: skip

    async def _difference(self) -> str | None:
        if not await self.node.call("exists", self.dest):
            return "there is no such file in the storage"
        size = int((await self.node.call("stat", self.dest))["content_length"])
        if size != self.image.size or await self.node.call("hash", self.dest, "sha256") != self.sha256:
            return "the file in the storage has other content"
        return None

    async def _send(self) -> str:
        """The file to the storage; the digest of what arrived."""
        if not self.node.has_method("put_file"):
            return await self._send_plain()
        options: dict[str, Any] = {"size": self.image.size, "sha256": self.sha256 or None}
        # an empty file is not worth a connection, and looks like one that broke
        if self.image.size and (way := direct_way(self.node)) is not None:
            try:
                return await self._send_directly({**options, "data": way})
            except NoDirectWay:
                pass  # nothing was sent: the other way is always there
        found: list[str] = []

        async def call(handle: Any) -> None:
            async for event in self._stream(handle, options):
                if event["event"] == "result":
                    found.append(str(event["sha256"]))

        await self._send_inside(call)
        return _proved(found)

    async def _send_directly(self, options: Mapping[str, Any]) -> str:
        connection: socket.socket | None = None
        sending: asyncio.Task[None] | None = None
        found: list[str] = []
        try:
            async with aclosing(self._stream(None, options)) as events:
                async for event in events:
                    if event["event"] == "no_data":
                        raise NoDirectWay("the storage does not offer it")
                    if event["event"] == "data":
                        connection = await asyncio.to_thread(connect_direct, self.node, event)
                        sending = asyncio.create_task(
                            asyncio.to_thread(send_direct, connection, self.image, None, as_is=True)
                        )
                    if event["event"] == "result":
                        found.append(str(event["sha256"]))
            return _proved(found)
        except DriverError:
            if sending is not None and sending.done() and isinstance(own := sending.exception(), ImagingError):
                raise ImagingError(own.plain, code=own.code, state=_NOTHING) from None
            raise
        finally:
            if connection is not None:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # not connected any more
                if sending is not None:
                    await asyncio.gather(sending, return_exceptions=True)
                connection.close()

    def _stream(self, handle: Any, options: Mapping[str, Any]) -> Any:
        return self.node.streamingcall("put_file", handle, self.dest, options)

    async def _send_inside(self, call: Callable[[Any], Any]) -> None:
        """Inside the gRPC connection: ``call`` gets the handle of what is sent."""
        finished = False
        async with self.node.resource_stream() as (stream, handle):
            sending = asyncio.create_task(send_all(stream, self._chunks()))
            calling = asyncio.ensure_future(call(handle))
            try:
                await asyncio.wait([sending, calling], return_when=asyncio.FIRST_COMPLETED)
                if sending.done() and isinstance(sending.exception(), ImagingError):
                    await stream.reset()  # the exporter must not wait for what cannot be read
                await calling
                if not sending.done():
                    await asyncio.wait([sending], timeout=5)
                if not sending.done():
                    raise ImagingError("the exporter did not take all of the file", code="broken", state=self._state)
                sending.result()
                finished = True
            except (BrokenResourceError, ClosedResourceError) as error:
                raise ImagingError("the exporter stopped reading", code="broken", state=self._state) from error
            except DriverError:
                if sending.done() and isinstance(own := sending.exception(), ImagingError):
                    raise ImagingError(own.plain, code=own.code, state=self._state) from None
                raise
            finally:
                if not finished:
                    await asyncio.shield(stream.reset())
                for task in (sending, calling):
                    task.cancel()
                await asyncio.gather(sending, calling, return_exceptions=True)

    async def _send_plain(self) -> str:
        """For exporters that know no more than open, write and close."""
        handle = await self.node.call("open", self.dest, "wb")
        try:
            await self._send_inside(lambda stream: self.node.call("file_write", handle, stream))
        finally:
            await self.node.call("file_close", handle)
        found = str(await self.node.call("hash", self.dest, "sha256"))
        if self.sha256 and found != self.sha256:
            raise ImagingError(
                f"{self.dest} has sha256 {found} after it was sent, expected {self.sha256}", code="verify_failed",
                state="the file in the storage is wrong",
            )  # fmt: skip
        return found

    def _chunks(self) -> Iterator[bytes]:
        done = 0
        for chunk in self.image.chunks():
            yield chunk
            done += len(chunk)
            self.meter.tell("sending", done, self.image.size)
        self.image.require_unchanged()


def _proved(found: list[str]) -> str:
    if not found:
        raise ImagingError("the exporter ended the transfer without a result", code="io", state=_NOTHING)
    return found[-1]


@asynccontextmanager
async def _translated(state: str = _NOTHING) -> AsyncIterator[None]:
    try:
        yield
    except DriverError as error:
        lost = isinstance(error, ConnectionError)
        raise ImagingError(error.details, code="exporter_lost" if lost else "refused", state=state) from error
    except ConnectionError as error:
        raise ImagingError(f"the exporter went away: {error}", code="exporter_lost", state=state) from error
