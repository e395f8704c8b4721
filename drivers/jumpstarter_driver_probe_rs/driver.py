# SPDX-License-Identifier: Apache-2.0
"""Microcontrollers behind a debug probe, with the program probe-rs (probe.rs)."""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import export
from jumpstarter_driver_storage.errors import StorageFailed, StorageRefused
from jumpstarter_driver_storage.staged import StagedFlasher

if TYPE_CHECKING:
    from jumpstarter.common.process import Process

__all__ = ["ProbeRs"]

_PROBE: Final = re.compile(r"[0-9a-fA-F]{4}:[0-9a-fA-F]{4}(:.+)?")
_WIDTHS: Final = {"b8": 8, "b16": 16, "b32": 32, "b64": 64}
_MOST_WORDS: Final = 1 << 16
#: What begins each kind of file, and how probe-rs calls it; ELF is what it expects.
_FORMATS: Final = ((b"\x7fELF", "elf"), (b":", "hex"), (b"UF2\n", "uf2"))


@dataclass(kw_only=True)
class ProbeRs(StagedFlasher):
    """A chip behind a debug probe.

    probe: "VID:PID" or "VID:PID:SERIAL" (hexadecimal), needed when there are several. chip: as ``probe-rs chip list``
    calls it. protocol: swd or jtag. connect_under_reset: hold reset while connecting. speed: of the protocol, in kHz.
    probe_rs_path: the program.
    timeout: seconds for one run of it. verify: have it read back what it wrote. base_address: where images without
    addresses (plain binaries) go.
    """

    driver_type: ClassVar[str] = "debug"
    #: Whether the chip holds an image is not asked: each flash writes.
    can_verify: ClassVar[bool] = False

    probe: str | None = None
    probe_rs_path: str = "probe-rs"
    chip: str | None = None
    protocol: Literal["swd", "jtag"] | None = None
    connect_under_reset: bool = False
    speed: int | None = None
    timeout: float = 300
    verify: bool = True
    base_address: int | None = None
    _running: set[Process] = field(init=False, default_factory=set, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probe is not None and not _PROBE.fullmatch(self.probe):
            raise ConfigurationError(f'probe-rs: probe "{self.probe}" is not VID:PID or VID:PID:SERIAL')
        if self.protocol is not None:
            self.protocol = self.protocol.lower()  # type: ignore[assignment]
            if self.protocol not in ("swd", "jtag"):
                raise ConfigurationError(f'probe-rs: protocol "{self.protocol}" is neither swd nor jtag')
        if self.speed is not None and self.speed <= 0:
            raise ConfigurationError(f"probe-rs: speed is {self.speed} kHz, must be positive")
        if self.timeout <= 0:
            raise ConfigurationError(f"probe-rs: timeout is {self.timeout:g} s, must be positive")
        if not self.probe_rs_path:
            raise ConfigurationError("probe-rs: probe_rs_path is empty")
        if shutil.which(self.probe_rs_path) is None:
            # No error: it may be installed while the exporter runs. But nobody should learn of it in a lease.
            self.logger.warning("probe-rs: program %s is not installed (not found in PATH)", self.probe_rs_path)
        if self.base_address is not None and not 0 <= self.base_address < 1 << 64:
            raise ConfigurationError(f"probe-rs: base_address is {self.base_address}, no address")

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_probe_rs.client.ProbeRsClient"

    # --- calls ----------------------------------------------------------------------------------------------

    @export
    async def info(self) -> str:
        """What probe-rs tells of the chip."""
        return await self._probe_rs("info")

    @export
    async def reset_target(self) -> str:
        """Reset the chip."""
        return await self._probe_rs("reset")

    @export
    async def erase(self) -> str:
        """Erase the chip's flash."""
        return await self._probe_rs("erase")

    @export
    async def download(self, src: Any) -> str:
        """Write the program behind a resource handle into the chip; what probe-rs says."""
        await self.run_flash(src, None, {})
        return self._said

    @export
    async def read(self, width: str, address: str, words: str | int) -> list[str]:
        """Read memory: width "b8", "b16", "b32" or "b64", address "0x20000000", number of words.

        Gives hexadecimal texts.
        """
        if width not in _WIDTHS:
            raise ValueError(f"read: width {width!r} is none of {', '.join(_WIDTHS)}")
        start, count = _whole(address, "address"), _whole(words, "words")
        if not 0 < count <= _MOST_WORDS:
            raise ValueError(f"read: words is {count}, must be 1 to {_MOST_WORDS}")
        if not 0 <= start < 1 << 64:
            raise ValueError(f"read: address {address} is none")
        said = await self._probe_rs("read", width, f"0x{start:x}", str(count))
        values = said.split()
        digits = _WIDTHS[width] // 4
        if len(values) != count or not all(re.fullmatch(f"(?:0x)?[0-9a-fA-F]{{1,{digits}}}", one) for one in values):
            raise OSError(
                f"probe-rs: asked for {count} words of {_WIDTHS[width]} bits, it answered {said.strip()[:80]!r}"
            )
        return [one.removeprefix("0x") for one in values]

    @export
    async def dump(self, target: Any, partition: str | None = None) -> None:
        """Not offered: `read` reads memory."""
        raise NotImplementedError("probe-rs reads memory by words: use read")

    def close(self) -> None:
        """End of the session: probe-rs ends with it."""
        for process in tuple(self._running):
            process.stop(1)
        super().close()

    # --- what a staged flasher needs ------------------------------------------------------------------------

    _said: str = field(init=False, default="", repr=False)

    @property
    def confirms(self) -> bool:
        """``verify``."""
        return self.verify

    def parse_target(self, name: str | None) -> str:
        """There is one: the chip. Where in it, the image says."""
        if name not in (None, "chip"):
            raise ValueError(f'target {name!r}: there is only "chip"; where a program goes is in its file')
        return "chip"

    async def write_device(self, name: str, path: Path) -> AsyncGenerator[tuple[str, int, int | None], None]:
        """Write with ``probe-rs download``."""
        size = path.stat().st_size
        yield "writing", 0, size
        with path.open("rb") as file:
            head = file.read(4)
        kind = next((kind for magic, kind in _FORMATS if head.startswith(magic)), "bin")
        options = ["--verify"] if self.verify else []
        if kind != "elf":
            options += ["--binary-format", kind]
        if kind == "bin":
            if self.base_address is None:
                raise StorageRefused(
                    f"driver {self.owner}: the image has no addresses (no ELF, Intel HEX or UF2): set base_address",
                    code="bad_image",
                )  # fmt: skip
            options += ["--base-address", f"0x{self.base_address:x}"]
        try:
            self._said = await self._probe_rs("download", *options, str(path))
        except FileNotFoundError as error:
            raise StorageRefused(f"driver {self.owner}: {error}", code="not_found") from error
        except OSError as error:
            raise StorageFailed(
                f"driver {self.owner}: {error}", code="io", state="what the chip holds is not known"
            ) from error
        yield "writing", size, size

    # --- the program ----------------------------------------------------------------------------------------

    async def _probe_rs(self, *command: str) -> str:
        """Run it; what it says on stdout. Raises OSError with its error when it fails, TimeoutError."""
        from jumpstarter.common.commands import base_environment, run_command

        done = await run_command(
            [self.probe_rs_path, *command], name="probe-rs", timeout=self.timeout, running=self._running,
            env={**base_environment(), **self._settings()},
        )  # fmt: skip
        if done.returncode:
            raise OSError(f"probe-rs {command[0]} failed: {_error(done.stderr) or done.describe()}")
        return done.stdout.decode(errors="replace")

    def _settings(self) -> dict[str, str]:
        """The variables by which probe-rs takes the options that all its commands have."""
        settings: dict[str, Any] = {
            "PROBE_RS_NON_INTERACTIVE": "true",
            "PROBE_RS_PROBE": self.probe,
            "PROBE_RS_CHIP": self.chip,
            "PROBE_RS_PROTOCOL": self.protocol,
            "PROBE_RS_CONNECT_UNDER_RESET": "true" if self.connect_under_reset else None,
            "PROBE_RS_SPEED": self.speed,
        }
        return {name: str(value) for name, value in settings.items() if value is not None}


def _error(stderr: bytes) -> str:
    """The error and its causes, on one line; probe-rs prints a tree of them."""
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines()]
    start = next((n for n, line in enumerate(lines) if line.startswith(("Error:", "error:"))), None)
    if start is None:
        return ""
    kept = [line for line in lines[start:] if line and line != "Caused by:"]
    return ": ".join(re.sub(r"^(?:[Ee]rror:|\d+:)\s*", "", line) for line in kept[:6])


def _whole(value: str | int, what: str) -> int:
    try:
        return int(value, 0) if isinstance(value, str) else int(value)
    except ValueError:
        raise ValueError(f"read: {what} {value!r} is no whole number") from None
