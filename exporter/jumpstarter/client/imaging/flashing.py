# SPDX-License-Identifier: Apache-2.0
"""Flashing: find out what has to be written, then write no more than that."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, TypeVar

from anyio import BrokenResourceError, ClosedResourceError

from jumpstarter.client.aio import AsyncNode
from jumpstarter.client.imaging.cache import Facts
from jumpstarter.client.imaging.direct import NoDirectWay, connect_direct, direct_way, send_direct
from jumpstarter.client.imaging.download import local_copy
from jumpstarter.client.imaging.registry import flash_from_registry
from jumpstarter.client.imaging.result import FlashResult, FlashTarget, ImagingError, Meter, ProgressCallback
from jumpstarter.client.imaging.sender import send_all, sparse_messages
from jumpstarter.client.imaging.source import Cancelled, CompressionChoice, LocalImage
from jumpstarter.common.exceptions import ConnectionError, DriverError, DriverInvalidArgument
from jumpstarter.common.storage import format_sizes, probe_file
from jumpstarter.streams.encoding import CompressedDataError

__all__ = ["flash", "list_targets"]

T = TypeVar("T")


async def flash(
    node: AsyncNode,
    src: str | PathLike[str],
    *,
    target: str | None = None,
    verify: bool = True,
    force: bool = False,
    check: bool = False,
    checksum: str | None = None,
    compression: CompressionChoice = "auto",
    progress: ProgressCallback | None = None,
    where: str | None = None,
    method: str = "flash",
    extra: Mapping[str, Any] | None = None,
) -> FlashResult:
    """Put the image ``src`` (a path, an http or https URL, or the ``oci://`` reference of an artifact that the exporter
    fetches) onto ``target`` of the flasher ``node``.

    An image the target already holds is not written again. ``verify`` reads the target back from the medium: after a
    write, or to find blocks that changed since the last flash, which are then repaired. ``force`` writes all of it
    anyway. ``check`` only tells what would be done. ``checksum``: ``sha256:...`` of the file, compared before the first
    write. ``compression``: auto (by content), none, gzip, xz, bz2 or zstd. ``where``: how errors name the exporter.
    ``method``: the plain call to use where the driver has no more; a driver's ``write`` instead of ``flash`` is always
    called plainly. ``extra``: options that only this kind of driver knows, for its ``flash_image``.

    Raises ImagingError; its ``state`` says what the target holds then.
    """
    started = time.monotonic()
    meter = Meter(progress)
    try:
        if isinstance(src, str) and src.lower().startswith("oci://"):
            if checksum is not None:
                raise ImagingError(f"{src}: name the digest in the reference instead of a checksum", code="refused")
            options = {"verify": verify, "force": force, "check": check, **(extra or {})}
            if compression != "auto":
                options["compression"] = None if compression in (None, "none") else str(compression)
            fetched = await flash_from_registry(node, f"oci://{src[6:]}", target=target, options=options, meter=meter)
            return replace(fetched, seconds=round(time.monotonic() - started, 3))
        async with _opened(src, compression, meter) as image:
            job = _Flash(node, image, target, verify, force, check, meter, method, extra or {})
            if checksum is not None:
                await job.work(lambda: image.verify_checksum(checksum, meter.tell))
            result = await job.run()
    except ImagingError as error:
        raise error.at(where) from None
    return replace(result, seconds=round(time.monotonic() - started, 3))


async def list_targets(node: AsyncNode) -> list[FlashTarget]:
    """What the flasher can flash; nothing for an exporter that does not tell."""
    if not node.has_method("targets"):
        return []
    fields = FlashTarget.__dataclass_fields__
    return [
        FlashTarget(**{name: value for name, value in entry.items() if name in fields})
        for entry in await node.call("targets")
    ]


@asynccontextmanager
async def _opened(src: str | PathLike[str], compression: CompressionChoice, meter: Meter) -> AsyncIterator[LocalImage]:
    async with local_copy(src, meter) as (path, name):
        image = await asyncio.to_thread(LocalImage, path, compression, name)
        try:
            yield image
        finally:
            image.close()


@dataclass
class _Flash:
    """One flash; see `flash` for the fields."""

    node: AsyncNode
    image: LocalImage
    target: str | None
    verify: bool
    force: bool
    check: bool
    meter: Meter
    method: str
    extra: Mapping[str, Any]
    done: int = 0
    """Bytes of the image the exporter last said it had dealt with."""

    async def run(self) -> FlashResult:
        """All of it."""
        if self.method != "flash" or not self.node.has_method("flash_image"):
            return await self._flash_plain()
        state = await self._call("flash_state", self.target)
        self.target = str(state["name"])
        if state.get("problem"):
            raise ImagingError(str(state["problem"]), code=str(state.get("code") or "refused"))
        await self.work(lambda: self.image.prove(self.meter.tell))
        self._refuse_if_larger(state.get("capacity"))
        record: Mapping[str, Any] | None = state.get("record")
        reason = await self._difference(record)
        if reason is None and record is not None:
            return await self._already_there(record, bool(state.get("untouched")), away=bool(state.get("away")))
        return await self._write(str(reason))

    async def work(self, function: Any) -> None:
        """Run what reads the image file in a thread that ends soon when this task is cancelled."""
        task = asyncio.ensure_future(asyncio.to_thread(function))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            self.image.cancel()
            try:
                await task
            except (Cancelled, ImagingError):
                pass  # nobody wants to know any more
            raise

    def _refuse_if_larger(self, capacity: int | None) -> None:
        size = self.image.content_size
        if size is not None and capacity is not None and size > capacity:
            image, room = format_sizes(size, int(capacity))
            raise ImagingError(
                f'image is {image}, target "{self.target}" of driver {self.node.path or "(root)"} holds {room}',
                code="too_large",
            )

    async def _difference(self, record: Mapping[str, Any] | None) -> str | None:
        """Why the target has to be written as a whole; None when the record says that it holds this image."""
        if self.force:
            return "forced"
        if record is None:
            return "the exporter has no record of what the target holds"
        if record["state"] != "valid":
            return "the last flash of the target was not completed"
        image = self.image
        if image.facts.content_sha256:
            same = record["sha256"] == image.facts.content_sha256
        elif record["source_size"] == image.size and image.content_size in (None, record["size"]):
            if image.compression is None and not await self._may_be(record):
                return "the target holds another image"
            await self.work(lambda: image.source_sha256(self.meter.tell))
            same = record["source_sha256"] == image.facts.source_sha256
            if same:
                image.learn(Facts(content_sha256=str(record["sha256"]), content_size=int(record["size"])))
        else:
            same = False
        return None if same else "the target holds another image"

    async def _may_be(self, record: Mapping[str, Any]) -> bool:
        """A look at a few blocks, before all of the file is read to compare it with the record."""
        wanted = record.get("probe")
        return not wanted or await asyncio.to_thread(probe_file, self.image.fd, self.image.size) == wanted

    async def _already_there(self, record: Mapping[str, Any], untouched: bool, *, away: bool) -> FlashResult:
        same = FlashResult(
            changed=False, target=self.target, size=int(record["size"]), sha256=str(record["sha256"]),
            verified=self.verify, reason="the target already holds this image",
        )  # fmt: skip
        if away and self.check:  # looking would take the storage from a device that may be using it
            return replace(same, verified=False, reason="the device has the storage, which got this image last")
        if not self.verify:
            return same if untouched else await self._write("the target was written to since it was flashed")
        found: Mapping[str, Any] = {}
        async with self._translated(), aclosing(self._stream("verify_image", self.target)) as events:
            async for event in events:
                found = self._take(event) or found
        bad = int(found.get("bad", 0))
        if not bad:
            return same
        reason = f"{bad} blocks of the target differed from what was flashed"
        if self.check:
            return replace(same, changed=True, verified=False, repaired_blocks=bad, reason=reason)
        runs = [(int(first), int(count)) for first, count in found["bad_blocks"]]
        return await self._write(reason, repair=runs, sha256=str(record["sha256"]))

    async def _write(
        self, reason: str, *, repair: list[tuple[int, int]] | None = None, sha256: str | None = None
    ) -> FlashResult:
        image = self.image
        if self.check:
            return FlashResult(
                changed=True, target=self.target, size=image.content_size, sha256=image.facts.content_sha256,
                reason=reason,
            )  # fmt: skip
        options: dict[str, Any] = {
            "framing": "sparse" if image.compression is None else "plain",
            "compression": str(image.compression) if image.compression else None,
            "size": image.content_size,
            "source_size": image.size,
            "sha256": sha256 or image.facts.content_sha256 or None,
            "verify": self.verify,
            **self.extra,
        }
        if repair is not None:
            options["repair"] = [list(run) for run in repair]
        report = await self._move(options, repair)
        image.learn(
            Facts(content_sha256=str(report["sha256"]), content_size=int(report["size"]), complete=True)
            if image.compression
            else Facts(
                source_sha256=str(report["sha256"]), content_sha256=str(report["sha256"]),
                content_size=int(report["size"]),
            )
        )  # fmt: skip
        return FlashResult(
            changed=True, target=self.target, size=int(report["size"]), written_bytes=int(report["written"]),
            skipped_bytes=int(report["skipped"]), moved_bytes=int(report["received"]), sha256=str(report["sha256"]),
            verified=bool(report["verified"]), repaired_blocks=int(report["repaired_blocks"]), reason=reason,
        )  # fmt: skip

    async def _move(self, options: dict[str, Any], repair: list[tuple[int, int]] | None) -> Mapping[str, Any]:
        """The image to the exporter, the fastest way there is; the exporter's ``result``."""
        image = self.image
        if (way := direct_way(self.node)) is not None:
            try:
                return await self._move_directly({**options, "data": way}, repair)
            except NoDirectWay:
                pass  # nothing was sent and nothing written: the other way is always there
        messages = sparse_messages(image, repair) if image.compression is None else _unchanged_chunks(image)
        return await self._transfer(messages, options)

    async def _move_directly(self, options: dict[str, Any], repair: list[tuple[int, int]] | None) -> Mapping[str, Any]:
        result: Mapping[str, Any] | None = None
        connection: socket.socket | None = None
        sending: asyncio.Task[None] | None = None
        try:
            async with self._translated(), aclosing(self._stream("flash_image", None, self.target, options)) as events:
                async for event in events:
                    if event.get("event") == "data":
                        connection = await asyncio.to_thread(connect_direct, self.node, event)
                        sending = asyncio.create_task(asyncio.to_thread(send_direct, connection, self.image, repair))
                    result = self._take(event) or result
            if result is None:
                state = "the target's state is unknown"
                raise ImagingError("the exporter ended the flash without a result", code="io", state=state)
            return result
        except ImagingError as error:
            if sending is not None and (reason := _own_failure(sending, error)) is not None:
                raise reason from error
            raise
        finally:
            if connection is not None:
                _hang_up(connection)
                if sending is not None:
                    await asyncio.gather(sending, return_exceptions=True)
                connection.close()

    async def _transfer(self, messages: Iterator[bytes], options: dict[str, Any]) -> Mapping[str, Any]:
        """Send while the exporter tells how it goes; its ``result``."""
        result: Mapping[str, Any] | None = None
        async with self._translated(), self.node.resource_stream() as (stream, handle):
            sending = asyncio.create_task(send_all(stream, messages))
            try:
                async with aclosing(self._stream("flash_image", handle, self.target, options)) as events:
                    async for event in events:
                        result = self._take(event) or result
                        if sending.done() and not sending.cancelled() and isinstance(sending.exception(), ImagingError):
                            await stream.reset()  # the exporter must not wait for what cannot be read
                if result is None:
                    state = "the target's state is unknown"
                    raise ImagingError("the exporter ended the flash without a result", code="io", state=state)
                return result
            except (ImagingError, DriverError) as error:
                if (reason := _own_failure(sending, error)) is not None:
                    raise reason from error
                raise
            finally:
                if result is None:
                    await asyncio.shield(stream.reset())
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)

    def _stream(self, method: str, *args: Any) -> Any:
        return self.node.streamingcall(method, *args)

    def _take(self, event: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Pass progress on; a result is returned, an error raised."""
        kind = event.get("event")
        if kind == "progress":
            total = event.get("total")
            self.meter.tell(str(event["phase"]), int(event["done"]), int(total) if total is not None else None)
            self.done = int(event["done"])
        elif kind == "error":
            raise ImagingError(
                str(event["message"]), code=str(event["code"]), state=str(event["state"]), written=int(event["written"])
            )
        elif kind == "result":
            return event
        return None

    async def _call(self, method: str, *args: Any) -> Any:
        async with self._translated():
            return await self.node.call(method, *args)

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        try:
            yield
        except ConnectionError as error:
            raise self._lost(error) from error
        except DriverError as error:
            if isinstance(error, ConnectionError):
                raise self._lost(error) from error
            message, _, state = error.details.rpartition("; ")
            known = "written" in state
            unknown = "invalid" if isinstance(error, DriverInvalidArgument) else "io"
            raise ImagingError(
                message if known else error.details, code="refused" if known else unknown,
                state=state if known else "nothing was written" if not self.done else "the target's state is unknown",
            ) from error  # fmt: skip

    def _lost(self, error: Exception) -> ImagingError:
        state = f"about {self.done} bytes done, target is incomplete" if self.done else "nothing is known to be written"
        return ImagingError(f"the exporter went away: {error}", code="exporter_lost", state=state, written=self.done)

    # --- exporters that know no more than flash() -----------------------------------------------------------

    async def _flash_plain(self) -> FlashResult:
        """One plain flash: unpacked here, because what 0.9 unpacks it does not check."""
        await self.work(lambda: self.image.prove(self.meter.tell))
        if self.check:
            return FlashResult(
                changed=True, target=self.target, size=self.image.content_size,
                reason="this exporter keeps no record of what the target holds",
            )  # fmt: skip
        digest = hashlib.sha256()
        sent = [0]
        async with self._translated(), self.node.resource_stream() as (stream, handle):
            sending = asyncio.create_task(send_all(stream, self._counted(digest, sent)))
            finished = False
            try:
                await self.node.call(self.method, handle, *([self.target] if self.target is not None else []))
                if not sending.done():
                    await asyncio.wait([sending], timeout=5)
                if not sending.done():
                    raise ImagingError(
                        f"the exporter took only {sent[0]} bytes of the image", code="broken",
                        state="target is incomplete", written=sent[0],
                    )  # fmt: skip
                sending.result()
                finished = True
            except (BrokenResourceError, ClosedResourceError) as error:
                raise ImagingError(
                    f"the exporter stopped reading after {sent[0]} bytes", code="broken", state="target is incomplete"
                ) from error
            except (ImagingError, DriverError) as error:
                if (reason := _own_failure(sending, error)) is not None:
                    raise reason from error
                raise
            finally:
                if not finished:
                    await asyncio.shield(stream.reset())
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        return FlashResult(
            changed=True, target=self.target, size=sent[0], written_bytes=sent[0], moved_bytes=sent[0],
            sha256=digest.hexdigest(), reason="this exporter keeps no record of what the target holds",
        )  # fmt: skip

    def _counted(self, digest: Any, sent: list[int]) -> Iterator[bytes]:
        total = self.image.content_size
        try:
            for chunk in self.image.plain_chunks():
                digest.update(chunk)
                yield chunk
                sent[0] += len(chunk)
                self.done = sent[0]
                self.meter.tell("writing", sent[0], total)
        except CompressedDataError as error:
            raise ImagingError(
                f"image {self.image.path}: {error}", code="bad_image", state="target is incomplete"
            ) from error
        self.image.require_unchanged()


def _own_failure(sending: asyncio.Task[None], error: Exception) -> ImagingError | None:
    """What went wrong on our side: it explains the exporter's error, which knows the target's state."""
    if sending.done() and not sending.cancelled():
        own = sending.exception()
        if isinstance(own, ImagingError):
            state = error.state if isinstance(error, ImagingError) else own.state
            return ImagingError(own.plain, code=own.code, state=state, written=getattr(error, "written", 0))
    return None


def _hang_up(connection: socket.socket) -> None:
    """No more from this side: a sender in another thread ends, and so does a receiver on the other end."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # not connected any more


def _unchanged_chunks(image: LocalImage) -> Iterator[bytes]:
    yield from image.chunks()
    image.require_unchanged()
