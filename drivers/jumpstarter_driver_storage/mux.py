# SPDX-License-Identifier: Apache-2.0
"""Storage that can be connected to the exporter host or to the device under test, but not to both."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from jumpstarter.driver import export
from jumpstarter_driver_storage.errors import StorageRefused
from jumpstarter_driver_storage.flasher import ImageFlasher
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


class StorageMuxInterface(metaclass=ABCMeta):
    """What every storage switch has; mix it in before `Driver` and export the methods."""

    driver_type: ClassVar[str] = "storage"

    @classmethod
    def client(cls) -> str:
        """Import path of the client class."""
        return "jumpstarter_driver_opendal.client.StorageMuxClient"

    @abstractmethod
    def host(self) -> Any:
        """Connect the storage to the exporter host."""

    @abstractmethod
    def dut(self) -> Any:
        """Connect the storage to the device under test."""

    @abstractmethod
    def off(self) -> Any:
        """Connect the storage to neither."""

    @abstractmethod
    def write(self, src: str) -> Any:
        """Write the image behind the resource handle ``src``; the storage must be connected to the host."""

    @abstractmethod
    def read(self, dst: str) -> Any:
        """Send the storage's content to the resource handle ``dst``; it must be connected to the host."""


class StorageMuxFlasherInterface(StorageMuxInterface):
    """A storage switch that clients use like a flasher: connect to the host, write or read, connect to the DUT."""

    @classmethod
    def client(cls) -> str:
        """Import path of the client class."""
        return "jumpstarter_driver_opendal.client.StorageMuxFlasherClient"


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
        self.find_target(partition)
        await self._switch("host")
        try:
            await self.run_dump(target, partition)
        finally:
            await self._switch("dut")

    async def before_write(self, name: str) -> None:
        """The storage must be on this side to be written."""
        await self._switch("host")

    async def after_write(self, name: str) -> None:
        """Whatever happened: the storage goes to the DUT, as Jumpstarter's flashers leave it."""
        await self._switch("dut")

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
