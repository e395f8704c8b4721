# SPDX-License-Identifier: Apache-2.0
"""Espressif chips over their serial bootloader, with Espressif's own esptool as a program (it is under the GPL)."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import export
from jumpstarter_driver_storage.errors import StorageFailed, StorageRefused
from jumpstarter_driver_storage.staged import StagedFlasher

if TYPE_CHECKING:
    from jumpstarter.common.process import Process

__all__ = ["Esp32Flasher"]

_PYTHON: Final = sys.executable
_LAST: Final = 1 << 32
_PROGRESS: Final = re.compile(rb"\(?(\d{1,3}(?:\.\d+)?)\s?%")
_NO_CHIP: Final = re.compile(r"Failed to connect|No serial data received|Could not open|could not open", re.I)
_FATAL: Final = "ERROR: A fatal error occurred: "
_NOT_RESET: Final = "Chip was NOT reset"
#: What esptool 4 and 5 call what we report.
_INFO: Final = {
    "chip": re.compile(r"^(?:Chip type:\s*|Chip is )(.+)$", re.M),
    "features": re.compile(r"^Features:\s*(.+)$", re.M),
    "mac": re.compile(r"^MAC:\s*([0-9a-f:]+)$", re.M | re.I),
    "crystal": re.compile(r"^(?:Crystal frequency:\s*|Crystal is )(.+)$", re.M),
}


@dataclass(kw_only=True)
class Esp32Flasher(StagedFlasher):
    """Flash of an Espressif chip; the child ``serial`` (a `PySerial`) is its UART, with DTR and RTS wired to reset.

    baudrate: of the transfer. chip: as esptool calls it (``esp32``, ``esp32c3``, ``auto``...). stub: load esptool's
    helper into the chip's RAM first; faster, and needed to read flash at speed. Targets are addresses in flash
    ("0x10000", the default is 0x0). timeout: seconds for one run of esptool. connect_attempts: of entering the
    bootloader. before, after: how esptool resets the chip first and last; ``no-reset`` where DTR and RTS are not wired
    and somebody (or something) else holds the chip in its bootloader.
    """

    driver_type: ClassVar[str] = "storage"
    needs: ClassVar[tuple[str, ...]] = ("esptool",)

    baudrate: int = 115200
    chip: str = "esp32"
    stub: bool = True
    timeout: float = 600
    connect_attempts: int = 7
    before: Literal["default-reset", "usb-reset", "no-reset"] = "default-reset"
    after: Literal["hard-reset", "soft-reset", "watchdog-reset", "no-reset"] = "hard-reset"
    _running: set[Process] = field(init=False, default_factory=set, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if "serial" not in self.children:
            raise ConfigurationError("esp32: the child serial is missing: a PySerial of the chip's UART")
        if self.baudrate <= 0:
            raise ConfigurationError(f"esp32: baudrate is {self.baudrate}, must be positive")
        if self.timeout <= 0:
            raise ConfigurationError(f"esp32: timeout is {self.timeout:g}, must be more than 0 s")
        if self.connect_attempts < 1:
            raise ConfigurationError(f"esp32: connect_attempts is {self.connect_attempts}, must be at least 1")
        if not re.fullmatch(r"auto|esp[0-9a-z]+", self.chip):
            raise ConfigurationError(f'esp32: chip "{self.chip}" is none that esptool could know ("esp32", "esp32c3")')

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_esp32.client.Esp32FlasherClient"

    # --- targets --------------------------------------------------------------------------------------------

    def parse_target(self, name: str | None) -> str:
        """An address of the flash, in hexadecimal."""
        return f"0x{_number(name or '0x0', 'target'):x}"

    # --- calls ----------------------------------------------------------------------------------------------

    @export
    async def dump(self, target: Any, partition: str | None = None) -> None:
        """Send what the flash holds; partition: "ADDRESS" or "ADDRESS:SIZE", by default the first 4 MiB."""
        address, size = _region(partition)
        with tempfile.TemporaryDirectory(prefix="jumpstarter-esp32-") as folder:
            path = Path(folder) / "flash.bin"
            await self._esptool("read-flash", f"0x{address:x}", f"0x{size:x}", str(path))
            there = path.stat().st_size if path.exists() else 0
            if there != size:
                raise OSError(f"esp32: esptool read {there} of {size} bytes at 0x{address:x}")
            async with self.resource(target) as stream:
                with path.open("rb") as file:
                    while data := file.read(1 << 16):
                        await stream.send(data)

    @export
    async def get_chip_info(self) -> dict[str, str]:
        """What the chip says it is: chip, features, mac, crystal. Resets it."""
        said = await self._esptool("flash-id")
        found = {key: match[1].strip() for key, pattern in _INFO.items() if (match := pattern.search(said))}
        if "chip" not in found or "mac" not in found:
            raise OSError(f"esp32: esptool names neither chip nor MAC: {_last_line(said)}")
        return {key: found.get(key, "") for key in _INFO}

    @export
    async def erase(self) -> None:
        """Erase the whole flash."""
        self.forget_images()
        await self._esptool("erase-flash")

    @export
    async def hard_reset(self) -> None:
        """Reset the chip, so that it runs what is in its flash. Fails when no chip answers."""
        await self._esptool("read-mac", after="hard-reset")

    @export
    async def enter_bootloader(self) -> None:
        """Reset the chip into its serial bootloader, and leave it there. Fails when no chip answers."""
        await self._esptool("read-mac", after="no-reset", stub=False)

    def close(self) -> None:
        """End of the session: esptool ends with it."""
        for process in tuple(self._running):
            process.stop(1)
        super().close()

    # --- what a staged flasher needs ------------------------------------------------------------------------

    async def write_device(self, name: str, path: Path) -> AsyncGenerator[tuple[str, int, int | None], None]:
        """Write with esptool, which compares the MD5 that the chip computes of its flash."""
        size = path.stat().st_size
        said = ""
        try:
            async with aclosing(self._lines("write-flash", name, str(path))) as lines:
                async for line in lines:
                    said += line
                    if (found := _PROGRESS.search(line.encode())) is not None:
                        yield "writing", min(size, int(size * float(found[1]) / 100)), size
        except OSError as error:
            if _NO_CHIP.search(str(error)) and "Writing" not in said:
                raise StorageRefused(str(error), code="not_found") from error
            raise StorageFailed(str(error), code="io", state="the flash is incomplete") from error
        if _NOT_RESET in said:
            raise StorageFailed(
                f"esp32: {_no_lines(self.children['serial'])}", code="io",
                state=f"the flash holds the image at {name}, the chip was not reset",
            )  # fmt: skip
        if "Hash of data verified" not in said:
            raise StorageFailed(
                f"esp32: esptool did not confirm the MD5 of what it wrote to {name}", code="verify_failed",
                state="what the flash holds is not known",
            )  # fmt: skip

    async def device_holds(self, name: str, path: Path) -> bool:
        """Whether the chip's MD5 of that region is the image's."""
        try:
            await self._esptool("verify-flash", name, str(path))
        except OSError as error:
            if _NO_CHIP.search(str(error)) or "verif" not in str(error).lower():
                raise
            return False
        return True

    # --- esptool --------------------------------------------------------------------------------------------

    async def _esptool(self, *command: str, after: str | None = None, stub: bool | None = None) -> str:
        """Run esptool; what it says. Raises OSError with its last line when it fails, TimeoutError."""
        said = []
        async with aclosing(self._lines(*command, after=after, stub=stub)) as lines:
            async for line in lines:
                said.append(line)
        text = "".join(said)
        if _NOT_RESET in text:  # a warning to esptool, and a reset that was asked for and did not happen to us
            raise OSError(f"esp32: {_no_lines(self.children['serial'])}")
        return text

    async def _lines(
        self, *command: str, after: str | None = None, stub: bool | None = None
    ) -> AsyncGenerator[str, None]:
        from jumpstarter.common.commands import base_environment, stream_command

        serial: Any = self.children["serial"]
        argv = [
            _PYTHON, "-P", "-m", "esptool", "--chip", self.chip, "--port", _port(serial), "--baud",
            str(self.baudrate), "--connect-attempts", str(self.connect_attempts), "--before", self.before,
            "--after", after or self.after,
        ]  # fmt: skip
        if not (self.stub if stub is None else stub):
            argv.append("--no-stub")
        # No colours, no bars drawn over one another, no settings file of whoever runs the exporter.
        environment = {
            **base_environment(), "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200", "PYTHONUNBUFFERED": "1",
            "ESPTOOL_CFGFILE": os.devnull,
        }  # fmt: skip
        tail = ""
        async with AsyncExitStack() as stack:
            lend = getattr(serial, "lend", None)
            if lend is not None:  # the console reads the same port
                await stack.enter_async_context(lend("esptool"))
            items = stream_command(
                [*argv, *command], name="esptool", env=environment, timeout=self.timeout, running=self._running
            )
            async for stdout, stderr, code in await stack.enter_async_context(aclosing(items)):
                text = (stdout + stderr).decode(errors="replace").replace("\r", "\n")
                tail = (tail + text)[-4096:]
                if text:
                    yield text
                if code:
                    raise OSError(f"esp32: esptool {command[0]} on {_port(serial)} failed: {_last_line(tail)}")


def _port(serial: Any) -> str:
    url = getattr(serial, "url", None)
    if not url:
        raise ValueError("esp32: the child serial is no PySerial: it has no url")
    return str(url)


def _no_lines(serial: Any) -> str:
    return (
        f"the chip was not reset: {_port(serial)} has no DTR and RTS; set before and after to no-reset and reset the "
        "chip another way"
    )


def _last_line(text: str) -> str:
    """The error among the last lines of esptool: the one that says so, or else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if "error" in line.lower() or "fail" in line.lower()]
    return (told or lines or ["it said nothing"])[-1].removeprefix(_FATAL).rstrip(".")


def _region(partition: str | None) -> tuple[int, int]:
    """Address and size of "ADDRESS[:SIZE]"."""
    address, colon, size = (partition or "0x0:0x400000").partition(":")
    start = _number(address, "partition")
    length = _number(size, "partition") if colon else (4 << 20) - start
    if length < 1:
        raise ValueError(f"partition {partition!r}: nothing to read; give a size, as in 0x400000:0x1000")
    return start, length


def _number(text: str, what: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < _LAST:
        raise ValueError(f"{what} {text!r} is not an address in flash, such as 0x10000")
    return value
