# SPDX-License-Identifier: Apache-2.0
"""The machine's partitions as flash targets."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jumpstarter.driver import export
from jumpstarter.driver.calls import call_to_end
from jumpstarter_driver_qemu.disks import Disks
from jumpstarter_driver_qemu.errors import MachineBusy
from jumpstarter_driver_qemu.settings import PARTITIONS
from jumpstarter_driver_storage.errors import StorageRefused
from jumpstarter_driver_storage.oci_flash import OciFlasher
from jumpstarter_driver_storage.target import Checked, Target

if TYPE_CHECKING:
    from jumpstarter.streams.resource import ResourceStream
    from jumpstarter_driver_qemu.driver import Qemu

__all__ = ["QemuFlasher"]


@dataclass(kw_only=True)
class QemuFlasher(OciFlasher):
    """Writes the disk (``root``, the default) and the firmware of a machine that is off.

    Images that the configuration names in ``default_partitions`` are never written; a flashed image takes their place.
    """

    parent: Qemu = field(repr=False)
    disks: Disks = field(repr=False)
    _claim: ExitStack = field(init=False, repr=False, default_factory=ExitStack)

    def storage_targets(self) -> Mapping[str, Target]:
        """The partitions. A disk without declared size takes that of its image."""
        found = {}
        for name in PARTITIONS:
            path, size = self.disks.target(name)
            found[name] = Target(path=str(path), kind="file", size=size)
        return found

    def default_target_name(self) -> str:
        """The disk."""
        return "root"

    async def before_write(self, name: str) -> None:
        """Keep the machine off until the write is over. Raises StorageRefused when it runs."""
        self._enter(f"write {name}")
        try:
            await call_to_end(self.disks.clear, name)  # the machine must stay off as long as it works
        except BaseException:
            self._claim.close()
            raise

    async def after_write(self, name: str) -> None:
        """Note what was written, and let the machine go. Raises StorageRefused for an image that needs other files."""
        with self._claim:
            try:
                await call_to_end(self.disks.flashed, name)
            except MachineBusy as error:  # the session ended meanwhile
                raise StorageRefused(error.message, code="cancelled", state="the target is incomplete") from error
            except ValueError as error:
                raise StorageRefused(
                    f"target {name}: {error}", code="refused", state="what was written is not used"
                ) from error

    def resource(self, handle: Any, timeout: float | None = None) -> AbstractAsyncContextManager[ResourceStream]:
        """The byte stream behind a handle; a transfer of the exporter's own may take ``flash_timeout`` seconds."""
        return super().resource(handle, self.parent.flash_timeout if timeout is None else timeout)

    @export
    async def dump(self, target: Any, partition: str | None = None) -> None:
        """Send the content of a partition (the disk by default) of a machine that is off."""
        name, _ = self.find_target(partition)
        self._enter(f"read {name}")
        with self._claim:
            if name == "root":
                await call_to_end(self.disks.materialise)
            await super().dump(target, name)

    def _look(self, name: str, target: Target) -> tuple[dict[str, Any], Checked | None]:
        state, checked = super()._look(name, target)
        if self.parent.running:
            return state | {"problem": "the virtual machine is running; power it off first", "code": "busy"}, None
        return state, checked

    def _enter(self, what: str) -> None:
        try:
            self._claim.enter_context(self.parent.exclusive(what))
        except MachineBusy as error:
            raise StorageRefused(error.message, code="busy") from error
