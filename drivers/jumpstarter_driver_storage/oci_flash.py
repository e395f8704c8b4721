# SPDX-License-Identifier: Apache-2.0
"""Flashers that fetch images from OCI registries themselves."""

from __future__ import annotations

import asyncio
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, ClassVar, Final, cast

from anyio import EndOfStream

from jumpstarter.common.storage import BLOCK_SIZE
from jumpstarter.driver import export
from jumpstarter_driver_storage.errors import StorageFault, StorageRefused
from jumpstarter_driver_storage.flasher import Event, ImageFlasher
from jumpstarter_driver_storage.oci import Artifact, Layer, Reference, Registry, find_credentials, is_insecure

if TYPE_CHECKING:
    from jumpstarter.streams.resource import ResourceStream

__all__ = ["OciFlasher", "choose_layer"]

_IMAGE_NAMES: Final = (".img", ".raw", ".wic", ".qcow2", ".iso", ".bin", ".simg")
_PACKED: Final = (".gz", ".xz", ".bz2", ".zst")


@dataclass(frozen=True)
class _Blob:
    """What stands for a client's handle when the image comes from a registry."""

    registry: Registry
    layer: Layer


@dataclass(kw_only=True)
class OciFlasher(ImageFlasher):
    """A flasher that also takes ``oci://`` references.

    insecure_registries: registries (``host:port``) that are spoken to by plain HTTP.
    """

    needs: ClassVar[tuple[str, ...]] = ("oras",)

    insecure_registries: list[str] = field(default_factory=list)

    @export
    async def flash_oci(
        self,
        oci_url: str,
        partition: str | None = None,
        oci_username: str | None = None,
        oci_password: str | None = None,
    ) -> AsyncIterator[tuple[str, str, int | None]]:
        """Flash the image of an artifact. Yields ``(stdout, stderr, None)`` while it works and ends with exit status 0;
        an error is raised."""
        options = {"username": oci_username, "password": oci_password}
        phase = ""
        async with aclosing(self.flash_oci_image(oci_url, partition, options)) as events:  # type: ignore[type-var]
            async for event in events:
                if event["event"] == "progress" and event["phase"] != phase:
                    phase = str(event["phase"])
                    yield f"{phase}\n", "", None
                elif event["event"] == "result":
                    yield f"{event['size']} bytes, sha256 {event['sha256']}\n", "", 0

    @export
    async def flash_oci_image(
        self, oci_url: str, target: str | None = None, options: dict[str, Any] | None = None
    ) -> AsyncIterator[Event]:
        """Flash the image of an artifact, unless the target holds it: events as of ``flash_image``; the ``result`` also
        says ``changed`` and ``digest`` (of the artifact).

        ``options``: username, password, verify, force, check, and those of ``flash_image`` that only a kind of driver
        knows.
        """
        values = dict(options or {})
        login = (values.pop("username", None), values.pop("password", None))
        verify, force, check = (bool(values.pop(name, default)) for name, default in _FLAGS)
        try:
            registry, artifact, layer = await asyncio.to_thread(self._look_up, oci_url, login)
        except StorageFault as fault:
            yield fault.as_event()
            raise
        state = await asyncio.to_thread(self.flash_state, target)
        record = state.get("record")
        extra = {"digest": artifact.digest}
        same = bool(
            record and record["state"] == "valid" and record["source_sha256"] == layer.digest.removeprefix("sha256:")
        )
        if record is not None and same and not force:
            result = {
                "event": "result", "target": state["name"], "size": record["size"], "written": 0, "skipped": 0,
                "received": 0, "sha256": record["sha256"], "verified": verify, "repaired_blocks": 0, "changed": False,
            }  # fmt: skip
            if not verify and state.get("untouched"):
                yield {**result, **extra}
                return
            if verify:
                bad = 0
                async with aclosing(self.verify_image(target)) as events:  # type: ignore[type-var]
                    async for event in events:
                        if event["event"] == "result":
                            bad = int(event["bad"])
                        else:
                            yield event
                if not bad:
                    yield {**result, **extra}
                    return
        if check:
            yield {
                "event": "result", "target": state["name"], "size": None, "written": 0, "skipped": 0, "received": 0,
                "sha256": "", "verified": False, "repaired_blocks": 0, "changed": True, **extra,
            }  # fmt: skip
            return
        # a layer that is packed itself is unpacked before, and its size not known
        whole = None if _is_tar(layer) else layer.size
        wanted = {"compression": "auto", "source_size": whole, "verify": verify, **values}
        async with aclosing(self._flash(_Blob(registry, layer), target, wanted)) as events:
            async for event in events:
                yield {**event, "changed": True, **extra} if event["event"] == "result" else event

    def resource(self, handle: Any, timeout: float = 7200) -> AbstractAsyncContextManager[ResourceStream]:
        """The byte stream behind a handle, or of a blob."""
        if isinstance(handle, _Blob):
            return _blob_stream(handle)
        return super().resource(handle, timeout)

    def _look_up(self, url: str, login: tuple[str | None, str | None]) -> tuple[Registry, Artifact, Layer]:
        try:
            reference = Reference.parse(url)
            registry = Registry(
                reference,
                find_credentials(reference, *login, trusted=False),
                insecure=is_insecure(reference, self.insecure_registries),
            )
            artifact = registry.artifact()
            return registry, artifact, choose_layer(artifact)
        except PermissionError as error:
            raise StorageRefused(str(error), code="permission") from error
        except FileNotFoundError as error:
            raise StorageRefused(str(error), code="not_found") from error
        except (OSError, ValueError) as error:
            raise StorageRefused(str(error), code="refused") from error


_STALL: Final = 120.0
_FLAGS: Final = (("verify", True), ("force", False), ("check", False))


def choose_layer(artifact: Artifact) -> Layer:
    """The blob that holds the image: the only one, or the only one named like an image. Raises ValueError."""
    if len(artifact.layers) == 1:
        return artifact.layers[0]
    named = [layer for layer in artifact.layers if _is_image_name(layer.title or "")]
    if len(named) == 1:
        return named[0]
    there = ", ".join(layer.title or layer.media_type for layer in artifact.layers) or "nothing"
    raise ValueError(f"{artifact.reference}: cannot tell which of its files is the image; it has {there}")


def _is_image_name(title: str) -> bool:
    name = title.lower()
    for suffix in _PACKED:
        name = name.removesuffix(suffix)
    return name.endswith(_IMAGE_NAMES)


def _is_tar(layer: Layer) -> bool:
    return ".tar" in layer.media_type or layer.media_type.endswith("tar")


@asynccontextmanager
async def _blob_stream(blob: _Blob) -> AsyncIterator[ResourceStream]:
    from jumpstarter.streams.resource import ResourceStream

    stream = _Pieces(_tar_member(blob) if _is_tar(blob.layer) else blob.registry.blob(blob.layer), blob.registry.stop)
    try:
        yield ResourceStream(stream)
    finally:
        await stream.aclose()


class _Pieces:
    """A blocking iterator as a stream of the event loop."""

    def __init__(self, pieces: Iterator[bytes], stop: Callable[[], None]) -> None:
        """stop: called, from the event loop, when nobody wants the piece that is on its way."""
        self._pieces = pieces
        self._stop = stop
        self._busy = asyncio.Lock()
        self._reading: asyncio.Future[bytes] | None = None

    async def receive(self) -> bytes:
        async with self._busy:
            self._reading = asyncio.ensure_future(asyncio.to_thread(next, self._pieces, b""))
            try:
                async with asyncio.timeout(_STALL):  # a registry that drips must not keep a flash for days
                    data = await asyncio.shield(self._reading)
            except (asyncio.CancelledError, TimeoutError) as error:
                await self._end_reading()
                if isinstance(error, TimeoutError):
                    raise TimeoutError(f"the registry has sent less than one piece in {_STALL:g} s") from None
                raise
        if not data:
            raise EndOfStream
        return data

    async def aclose(self) -> None:
        async with self._busy:
            await self._end_reading()  # receive() may have been cancelled a second time, while it waited for this
            close = getattr(self._pieces, "close", None)
            if close is not None:
                await asyncio.to_thread(close)

    async def _end_reading(self) -> None:
        """A thread that is still reading must end before the iterator is closed."""
        if (reading := self._reading) is None:
            return
        if not reading.done():
            self._stop()
            await asyncio.wait([reading])
        if not reading.cancelled():
            reading.exception()  # that it was stopped is known, and what it raised by itself was raised


def _tar_member(blob: _Blob) -> Iterator[bytes]:
    """The only file in a layer that is a tar archive, as images for virtual machines are published."""
    pieces = blob.registry.blob(blob.layer)
    where = f"{blob.registry.reference}"
    try:
        with tarfile.open(fileobj=cast(IO[bytes], _Reader(pieces)), mode="r|*") as archive:
            found = ""
            for member in archive:
                if not member.isreg() or not member.size:
                    continue
                if found:
                    raise ValueError(f"{where}: its archive holds several files ({found}, {member.name}, ...)")
                found = member.name
                file = archive.extractfile(member)
                assert file is not None
                while data := file.read(BLOCK_SIZE):
                    yield data
            if not found:
                raise ValueError(f"{where}: its archive holds no file")
    except tarfile.TarError as error:
        raise ValueError(f"{where}: its archive is damaged: {error}") from error
    for _ in pieces:  # the digest is compared at the end of the blob
        pass


class _Reader:
    """An iterator of bytes as a file that is only read on."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        while len(self._rest) < size:
            piece = next(self._pieces, b"")
            if not piece:
                break
            self._rest += piece
        data, self._rest = self._rest[:size], self._rest[size:]
        return data
