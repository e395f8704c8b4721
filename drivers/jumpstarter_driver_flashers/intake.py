# SPDX-License-Identifier: Apache-2.0
"""An image on its way from the client into the exporter's cache."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jumpstarter_driver_flashers.compat import BundleCalls
from jumpstarter_driver_flashers.images import ImageCache, Intake, StoredImage
from jumpstarter_driver_flashers.job import end
from jumpstarter_driver_storage.data import DataListener, SocketChunks
from jumpstarter_driver_storage.errors import JobCancelled, StorageFault, StorageRefused
from jumpstarter_driver_storage.feeder import Feeder
from jumpstarter_driver_storage.flasher import feed
from jumpstarter_driver_storage.job import FlashOptions

__all__ = ["ImageTaker"]

Event = dict[str, Any]


@dataclass(kw_only=True)
class ImageTaker(BundleCalls):
    """A flasher with a cache of images."""

    _cache: ImageCache = field(init=False, repr=False)

    async def _arrive(self, *arguments: Any) -> StoredImage:
        """`_take_in`; what goes wrong with the image is no matter of the board, and no reason to boot it again."""
        try:
            return await self._take_in(*arguments)
        except StorageFault:
            raise
        except OSError as error:
            raise StorageRefused(f"the image did not arrive: {error}", code="broken") from error

    async def _take_in(
        self, source: Any, data: Mapping[str, Any] | None, options: FlashOptions, say: Callable[[Event], None],
        received: list[int],
    ) -> StoredImage:  # fmt: skip
        """The image into the cache, unless it is there: by a connection of its own, or through the client's stream."""
        if options.sha256 is not None:
            known = await asyncio.to_thread(self._cache.find, options.sha256)
            if known is not None and options.size in (None, known.size):
                return known
        if options.repair is not None:
            options = FlashOptions(**{**options.__dict__, "repair": None})
        if data:
            listener = DataListener(data)
            say(listener.offer())
            chunks = SocketChunks(listener.accept, sparse=options.framing == "sparse", size=options.source_size)
            try:
                return await self._store_image(lambda: chunks, options, say, received, listener.stop)
            finally:
                listener.close()
        async with self.resource(source) as stream:
            if stream.encoding and options.framing == "plain":
                options = FlashOptions(**{**options.__dict__, "compression": stream.encoding})
            feeder = Feeder()
            feeding = asyncio.create_task(feed(stream.raw(), feeder))
            try:
                return await self._store_image(
                    lambda: feeder, options, say, received, lambda: feeder.fail(JobCancelled())
                )
            finally:
                feeder.abandon()
                await end(feeding)

    async def _store_image(
        self, chunks: Callable[[], Any], options: FlashOptions, say: Callable[[Event], None], received: list[int],
        stop: Callable[[], None],
    ) -> StoredImage:  # fmt: skip
        intake = Intake(self._cache, options)

        def work(notify: Callable[[Event], None]) -> StoredImage:
            return intake.run(chunks(), notify)

        def cancel() -> None:
            intake.cancel()
            stop()

        async with self._operation("flasher-intake", work, cancel) as operation:
            async for event in operation.events():
                say(event)
            image: StoredImage = operation.result()
        received[0] = intake.received
        return image
