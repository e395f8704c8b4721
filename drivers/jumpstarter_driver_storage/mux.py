# SPDX-License-Identifier: Apache-2.0
"""Storage that can be connected to the exporter host or to the device under test, but not to both."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from jumpstarter.driver import export
from jumpstarter_driver_storage.errors import StorageRefused
from jumpstarter_driver_storage.flasher import ImageFlasher
from jumpstarter_driver_storage.interface import StorageMuxFlasherInterface, StorageMuxInterface
from jumpstarter_driver_storage.target import Target

__all__ = [
    "Side",
    "StorageMux",
    "StorageMuxFlasherInterface",
    "StorageMuxInterface",
    "TargetStorageMux",
    "TargetStorageMuxFlasher",
]

Side = Literal["host", "dut", "off", "unknown"]


@dataclass(kw_only=True)
class StorageMux(StorageMuxInterface, ImageFlasher):
    """Base of storage switches on the flash engine.

    A driver implements `connect_to` (and `connected_to` where the hardware tells) and `storage_targets`. ``write``
    and ``read`` leave the switch alone; ``flash``, ``flash_image`` and ``dump`` switch to the host, work, and switch to
    the DUT, here on the exporter, so that a client that dies does not leave the storage on the wrong side.
    """

    _side: Side = field(init=False, repr=False, default="unknown")

    @abstractmethod
    async def connect_to(self, side: Side) -> None:
        """Switch; returns when the switch has happened and, on the host's side, the storage is there."""

    async def connected_to(self) -> Side:
        """Where the storage is connected now: what the hardware says, else what was switched last."""
        return self._side

    @export
    async def host(self) -> None:
        """Connect the storage to the exporter host."""
        await self._switch("host")

    @export
    async def dut(self) -> None:
        """Connect the storage to the device under test."""
        await self._switch("dut")

    @export
    async def off(self) -> None:
        """Connect the storage to neither."""
        await self._switch("off")

    @export(readonly=True)
    async def state(self) -> str:
        """``host``, ``dut``, ``off`` or ``unknown``."""
        return await self.connected_to()

    @export
    async def write(self, src: Any) -> dict[str, Any]:
        """Write the image behind ``src``; returns when it is on the medium and verified."""
        await self._must_be_reachable("written")
        return await self.run_flash(src, None, {"compression": "auto"}, prepare=False)

    @export
    async def read(self, dst: Any) -> None:
        """Send the whole content to the handle ``dst``."""
        await self._must_be_reachable("read")
        await self.run_dump(dst, None)

    @export
    async def dump(self, target: Any, partition: str | None = None) -> None:
        """Connect to the host, send the whole content to the handle ``target``, connect to the DUT."""
        await asyncio.to_thread(self.find_target, partition)
        async with self._on_host():
            await self.run_dump(target, partition)

    async def before_write(self, name: str) -> None:
        """The storage must be on this side to be written; when it does not come, it is given back."""
        try:
            await self._switch("host")
        except BaseException:
            await self._give_back()
            raise

    async def after_write(self, name: str) -> None:
        """Whatever happened: the storage goes to the DUT, as Jumpstarter's flashers leave it."""
        await self._switch("dut")

    @asynccontextmanager
    async def _on_host(self) -> AsyncIterator[None]:
        """The storage is on the host within the block, and goes to the DUT whatever happens."""
        try:
            await self._switch("host")
            yield
        except BaseException:
            await self._give_back()
            raise
        await self._switch("dut")

    async def _give_back(self) -> None:
        """After a failure: what goes wrong on the way to the DUT must not hide it."""
        try:
            await self._switch("dut")
        except Exception as error:  # noqa: BLE001 - the caller hears of the first failure; this one is for the log
            self.logger.warning("driver %s: the storage could not be given back to the DUT: %s", self.owner, error)

    async def _switch(self, side: Side) -> None:
        self._side = "unknown"
        await self.connect_to(side)
        self._side = side

    async def _must_be_reachable(self, what: str) -> None:
        side = await self.connected_to()
        if side in ("dut", "off"):
            away = "connected to the DUT" if side == "dut" else "switched off"
            raise StorageRefused(
                f"storage of driver {self.owner} is {away} and cannot be {what}; call host first", code="refused"
            )


@dataclass(kw_only=True)
class TargetStorageMux(StorageMux):
    """A storage switch without hardware over one file or block device: it keeps account of the side and enforces it.

    For devices whose storage the exporter host and the DUT (a virtual machine, say) can both reach.
    Fields: those of `jumpstarter_driver_storage.target.Target`.
    """

    path: str
    size: int | str | None = None
    min_size: int | str | None = None
    identity: dict[str, str] = field(default_factory=dict)
    kind: Literal["auto", "file", "block"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        fields = {"path": self.path, "size": self.size, "min_size": self.min_size, "identity": self.identity}
        self._target = Target.parse("storage", {**fields, "kind": self.kind})

    def storage_targets(self) -> Mapping[str, Target]:
        """The one target, called ``storage``."""
        return {"storage": self._target}

    async def connect_to(self, side: Side) -> None:
        """Nothing to switch: the account is kept by the base."""


@dataclass(kw_only=True)
class TargetStorageMuxFlasher(StorageMuxFlasherInterface, TargetStorageMux):
    """`TargetStorageMux` whose client is used like a flasher."""
