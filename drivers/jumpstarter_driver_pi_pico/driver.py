# SPDX-License-Identifier: Apache-2.0
"""Raspberry Pi Pico and other boards with a UF2 bootloader: firmware is copied to the volume they show."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import call_cancelled, export
from jumpstarter.driver.calls import call_to_end
from jumpstarter_driver_pi_pico.uf2 import FAMILIES, check_uf2, family_id
from jumpstarter_driver_pi_pico.volume import Volume, find_volumes
from jumpstarter_driver_storage.errors import StorageFailed, StorageRefused
from jumpstarter_driver_storage.operation import Operation
from jumpstarter_driver_storage.staged import StagedFlasher

__all__ = ["PiPicoFlasher"]

_NAME: Final = "Firmware.uf2"
_POLL: Final = 0.05
_CHUNK: Final = 64 << 10
_TOUCH: Final = 0.1
"""Seconds the port stays open with the bootloader's speed: firmware looks at it now and then."""
#: Families that a bootloader's Board-ID stands for.
_TAKES: Final = {
    "RPI-RP2": ("rp2040", "absolute", "data"),
    "RP2350": ("absolute", "data", "rp2350-arm-s", "rp2350-riscv", "rp2350-arm-ns"),
}


@dataclass(kw_only=True)
class PiPicoFlasher(StagedFlasher):
    """Copies UF2 firmware to a board's bootloader volume, and waits until the board has taken it and is gone.

    Ways into the bootloader, in this order: it is there already; the children ``bootsel`` and ``run`` (outputs with
    ``on`` and ``off`` that pull these pins low); the child ``serial`` (a `PySerial`), opened with
    bootloader_touch_baudrate.
    bootloader_wait_seconds: how long the volume may take to come, and to go when the firmware is there.
    gpio_reset_hold_seconds: how long the pins are held. settle_seconds: how long the board has to stay away; one whose
    firmware cannot start comes back into its bootloader.
    volume: the mount point, where several such boards are connected. families: UF2 families that are accepted, by name
    or number, for boards other than those of Raspberry Pi.
    """

    driver_type: ClassVar[str] = "storage"
    #: The bootloader cannot be read: that the board took it and left is all the evidence there is.
    can_verify: ClassVar[bool] = False

    bootloader_touch_baudrate: int = 1200
    bootloader_wait_seconds: float = 5.0
    gpio_reset_hold_seconds: float = 0.1
    settle_seconds: float = 1.5
    volume: str | None = None
    families: list[str | int] = field(default_factory=list)
    _families: frozenset[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bootloader_touch_baudrate <= 0:
            raise ConfigurationError(f"pi-pico: bootloader_touch_baudrate is {self.bootloader_touch_baudrate}")
        if self.bootloader_wait_seconds <= 0:
            raise ConfigurationError(
                f"pi-pico: bootloader_wait_seconds is {self.bootloader_wait_seconds:g}, must be positive"
            )
        for name in ("gpio_reset_hold_seconds", "settle_seconds"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"pi-pico: {name} is {getattr(self, name):g}, must not be negative")
        if ("bootsel" in self.children) != ("run" in self.children):
            raise ConfigurationError("pi-pico: the children bootsel and run are only of use together")
        try:
            self._families = frozenset(family_id(value) for value in self.families)
        except ValueError as error:
            raise ConfigurationError(f"pi-pico: families: {error}") from None

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_pi_pico.client.PiPicoClient"

    # --- targets --------------------------------------------------------------------------------------------

    def parse_target(self, name: str | None) -> str:
        """The file's name on the volume."""
        wanted = name or _NAME
        if wanted != os.path.basename(wanted) or wanted in (".", "..") or "\0" in wanted:
            raise ValueError(f"target {wanted!r} is not a file's name on the volume, such as {_NAME}")
        return wanted

    # --- calls ----------------------------------------------------------------------------------------------

    @export
    async def enter_bootloader(self) -> None:
        """Bring the board into its bootloader. Raises TimeoutError when the volume does not come."""
        await self._enter()

    @export(readonly=True)
    async def bootloader_info(self) -> dict[str, str]:
        """What INFO_UF2.TXT says ("Model", "Board-ID", ...), and where the volume is ("mount")."""
        found = await asyncio.to_thread(self._find)
        if found is None:
            raise ConnectionError(f"{self._label}: the board is not in its bootloader: no volume with INFO_UF2.TXT")
        return {**found.info, "mount": str(found.path)}

    @export
    async def dump(self, target: Any, partition: str | None = None) -> None:
        """Not possible: the bootloader does not show what the flash holds."""
        raise NotImplementedError("a UF2 bootloader cannot be read")

    # --- what a staged flasher needs ------------------------------------------------------------------------

    async def write_device(self, name: str, path: Path) -> AsyncGenerator[tuple[str, int, int | None], None]:
        """Copy the file, and see the board leave."""
        try:
            await asyncio.to_thread(check_uf2, path, self._families or frozenset(FAMILIES.values()))
            volume = await self._enter()
            takes = self._families or frozenset(FAMILIES[one] for one in _TAKES.get(volume.board_id, FAMILIES))
            await asyncio.to_thread(check_uf2, path, takes)
        except StorageRefused:
            raise
        except ValueError as error:
            raise StorageRefused(f"{self._label}: the image {error}", code="bad_image") from None
        except (OSError, TimeoutError, NotImplementedError) as error:
            raise StorageRefused(f"{self._label}: {error}", code="not_found") from error
        cancelled: list[bool] = []

        def copy(notify: Callable[[dict[str, Any]], None]) -> None:
            _copy(path, volume.path / name, lambda done: notify({"done": done}), lambda: bool(cancelled))

        operation = Operation(f"copy-{name}", copy, lambda: cancelled.append(True))
        size = path.stat().st_size
        try:
            async for event in operation.events():
                yield "writing", event["done"], size
            try:
                operation.result()
            except OSError as error:
                raise StorageFailed(
                    f"{self._label}: copying to {volume.path} failed: {error.strerror or error}", code="io",
                    state="the board holds half a program, if any",
                ) from error  # fmt: skip
        finally:
            await operation.stop()
        yield "syncing", size, size
        await self._taken(volume)

    # --- how ------------------------------------------------------------------------------------------------

    @property
    def _label(self) -> str:
        return f"driver {self.owner}"

    def _find(self) -> Volume | None:
        volumes = find_volumes()
        if self.volume is not None:
            wanted = os.path.realpath(os.path.expanduser(self.volume))
            return next((one for one in volumes if os.path.realpath(one.path) == wanted), None)
        if len(volumes) > 1:
            paths = ", ".join(str(one.path) for one in volumes)
            raise StorageRefused(
                f"{self._label}: several boards are in their bootloader ({paths}); set volume to one of them",
                code="mismatch",
            )  # fmt: skip
        return volumes[0] if volumes else None

    async def _wait(self, seconds: float, found: Callable[[], Any]) -> Any:
        """The first value of ``found`` that is true, None when the time is over."""
        end = asyncio.get_running_loop().time() + seconds
        while True:
            if value := await asyncio.to_thread(found):
                return value
            if asyncio.get_running_loop().time() >= end:
                return None
            # The kernel tells of a mount, but not of one that automounters are about to make or of a device that left.
            await asyncio.sleep(_POLL)

    async def _enter(self) -> Volume:
        found = await asyncio.to_thread(self._find)
        if found is not None:
            return found
        if "bootsel" in self.children:
            await self._press_bootsel()
        elif "serial" in self.children:
            await self._touch()
        else:
            raise NotImplementedError(
                "the board is not in its bootloader, and neither serial nor bootsel and run are there to bring it "
                "there: hold BOOTSEL while you plug it in"
            )
        volume = await self._wait(self.bootloader_wait_seconds, self._find)
        if volume is None:
            raise TimeoutError(
                f"no bootloader volume within {self.bootloader_wait_seconds:g} s; is it mounted on the exporter host?"
            )
        assert isinstance(volume, Volume)
        return volume

    async def _press_bootsel(self) -> None:
        bootsel: Any = self.children["bootsel"]
        run: Any = self.children["run"]
        hold = self.gpio_reset_hold_seconds
        async with AsyncExitStack() as pins:  # whatever happens, no pin stays low
            pins.push_async_callback(call_to_end, bootsel.off)
            await call_to_end(bootsel.on)
            await asyncio.sleep(hold)
            try:
                await call_to_end(run.on)
                await asyncio.sleep(hold)
            finally:
                await call_to_end(run.off)
            await asyncio.sleep(hold)

    async def _touch(self) -> None:
        serial: Any = self.children["serial"]
        url = getattr(serial, "url", None)
        if not url:
            raise ValueError("the child serial is no PySerial: it has no url")
        lend = getattr(serial, "lend", None)
        async with AsyncExitStack() as stack:
            if lend is not None:  # the console reads the same port
                await stack.enter_async_context(lend("the bootloader touch"))
            await call_to_end(_open_and_close, str(url), self.bootloader_touch_baudrate)

    async def _taken(self, volume: Volume) -> None:
        """Wait for the board to leave its bootloader for good."""
        gone = await self._wait(self.bootloader_wait_seconds, lambda: not volume.there or volume.failure)
        if failure := await asyncio.to_thread(lambda: volume.failure if volume.there else ""):
            raise StorageFailed(
                f"{self._label}: the board refuses the image: {failure}",
                code="verify_failed",
                state="what it holds is not known",
            )
        if not gone:
            raise StorageFailed(
                f"{self._label}: the board is still in its bootloader {self.bootloader_wait_seconds:g} s after the "
                "copy: it did not take the image", code="verify_failed", state="what it holds is not known",
            )  # fmt: skip
        if await self._wait(self.settle_seconds, lambda: any(one.path == volume.path for one in find_volumes())):
            raise StorageFailed(
                f"{self._label}: the board came back into its bootloader: the image does not start",
                code="verify_failed", state="the board holds the image",
            )  # fmt: skip


def _open_and_close(url: str, baudrate: int) -> None:
    """What the USB stack of the board's firmware takes as the wish for the bootloader."""
    import serial

    try:
        port = serial.serial_for_url(url, baudrate=baudrate, do_not_open=True)
        port.open()
        try:
            port.dtr = False
            time.sleep(_TOUCH)
        except OSError:
            time.sleep(_TOUCH)  # the board left as soon as it saw the speed, or the port has no lines
        finally:
            port.close()
    except (OSError, ValueError) as error:
        raise OSError(f"serial port {url}: {getattr(error, 'strerror', None) or error}") from error


def _copy(source: Path, target: Path, progress: Callable[[int], None], cancelled: Callable[[], bool]) -> None:
    """Copy and flush. All bytes must be taken; a board that leaves while the end is flushed has them."""
    done, size = 0, source.stat().st_size
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        with source.open("rb") as file:
            while data := memoryview(file.read(_CHUNK)):
                while data:
                    if cancelled() or call_cancelled():
                        raise OSError("cancelled")
                    count = os.write(fd, data)
                    data = data[count:]
                    done += count
                progress(done)
        if done != size:
            raise OSError(f"only {done} of {size} bytes were there to copy")
        try:
            os.fsync(fd)
        except OSError:
            # The last block starts the program, and the volume is gone before the file system's own blocks are
            # written. Whether the board left or failed is what the caller looks at next.
            pass
    finally:
        try:
            os.close(fd)
        except OSError:
            pass  # as above: the volume is gone
