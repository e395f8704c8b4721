# SPDX-License-Identifier: Apache-2.0
"""What a flash asks of the flasher system: find the disk, fetch the image, write it, read it back."""

from __future__ import annotations

import os.path
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from jumpstarter.common.storage import format_sizes
from jumpstarter_driver_flashers.shell import ShellError, ShellLink, quote
from jumpstarter_driver_flashers.uboot_stage import Say
from jumpstarter_driver_storage.errors import StorageRefused

__all__ = ["LinuxStage", "Source"]

_SYNC_SECONDS: Final = 1200.0
_UNPACK: Final = {
    "gzip": ("zcat", "gzip -dc"),
    "xz": ("xzcat", "xz -dc"),
    "bz2": ("bzcat", "bzip2 -dc"),
    "zstd": ("zstdcat", "zstd -dc"),
}
_BLOCK: Final = 1 << 20


@dataclass(frozen=True)
class Source:
    """Where the board fetches an image from. headers: shell variables that hold header lines (secrets)."""

    url: str
    compression: str | None
    headers: tuple[str, ...] = ()
    insecure: bool = False
    cacert: str | None = None


class LinuxStage:
    """A shell on the board. Errors are ShellError (another attempt may help) or StorageRefused (none will)."""

    def __init__(
        self, shell: ShellLink, say: Say, *, stall: float, appear: int = 30, interval: float = 1, scratch: str = "/tmp"
    ) -> None:
        """stall: seconds without a byte moving after which a transfer is given up. appear: seconds that the disk may
        take to be there. interval: seconds between two looks at how far it is. scratch: a folder in the board's RAM."""
        self._interval = interval
        self._appear = appear
        self._scratch = scratch
        self.shell = shell
        self._say = say
        self._stall = stall
        self.warnings: list[str] = []

    async def prepare(self, environment: dict[str, str], commands: Sequence[str]) -> None:
        """File systems that everything needs, the bundle's own commands, and the clock.

        A command of the bundle that fails is noted, for the message of what may fail because of it.
        """
        run = self.shell.status
        await run("export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 10)
        for kind, place in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")):
            mounted = f"[ -e /proc/mounts ] && grep -q ' {place} ' /proc/mounts"
            await run(f"{mounted} || {{ mkdir -p {place}; mount -t {kind} {kind} {place}; }}", 10)
        for name, value in environment.items():
            await run(f"export {name}={quote(value)}", 10)
        for command in commands:
            self._say("preparing the flasher system", 0, None)
            rc, lines = await run(command, 120, what=f"preflash command {command!r}")
            if rc != 0:
                said = lines[-1].strip() if lines else "no output"
                self.warnings.append(f"preflash command {command!r} had failed with exit status {rc}: {said}")
        await run(f"date -s @{int(time.time())}", 10)

    async def network(self) -> None:
        """An address by DHCP on the first interface that gets one, unless there is one already."""
        self._say("flasher system: dhcp", 0, None)
        up = "ip -4 addr show scope global 2>/dev/null | grep -q inet"
        one = (
            'for i in $(ls /sys/class/net); do [ "$i" = lo ] && continue; '
            'ip link set "$i" up 2>/dev/null || ifconfig "$i" up; done; '
            'for i in $(ls /sys/class/net); do [ "$i" = lo ] && continue; udhcpc -n -q -t 8 -i "$i" </dev/null '
            "&& break; done"
        )
        await self._command(f"{up} || {{ {one}; }}", 120, "DHCP in the flasher system")

    async def resolve(self, device: str) -> str:
        """The block device's path: of ``/dev/...``, ``/sys/class/block#<address>`` or ``partlabel:<label>``. Waits
        until it is there."""
        self._say("flasher system: looking for the disk", 0, None)
        if device.startswith("/sys/class/block#"):
            address = quote(device.partition("#")[2])
            look = f"ls -l /sys/class/block/ | grep -F -e {address} | head -n 1"
            look = f'n=$({look}); n=${{n%% -> *}}; n=${{n##* }}; [ -n "$n" ] && D=/dev/$n'
        elif device.startswith("partlabel:"):
            line = quote("PARTNAME=" + device.partition(":")[2])
            look = f"n=$(grep -lx -e {line} /sys/class/block/*/uevent | head -n 1); n=${{n%/uevent}}; D=/dev/${{n##*/}}"
        else:
            look = f"D=$(readlink -f {quote(device)})"
        wait = f'n=0; i=0; until {look}; [ -b "$D" ]; do i=$((i+1)); [ $i -gt {self._appear} ] && break; sleep 1; done'
        lines = await self._command(
            f'{wait}; echo "D=$D"; [ -b "$D" ]', self._appear + 20, f"looking for the block device {device}"
        )
        found = re.search(r"^D=(/dev/[\w./!:+-]+)\r?$", "\n".join(lines), re.MULTILINE)
        if found is None:
            raise ShellError(f"looking for the block device {device} gave {' / '.join(lines)!r}")
        return found[1]

    async def check_room(self, device: str, size: int, target: str) -> None:
        """Raise StorageRefused when the image does not fit or the disk is write-protected."""
        where = f"/sys/class/block/{os.path.basename(device)}"
        lines = await self._command(f"cat {where}/size {where}/ro", 10, f"the size of {device}")
        numbers = [int(line) for line in lines if line.strip().isdigit()]
        if len(numbers) != 2:
            raise ShellError(f"{device} tells no size: {' / '.join(lines)!r}")
        if numbers[0] * 512 < size:
            image, room = format_sizes(size, numbers[0] * 512)
            raise StorageRefused(f'image is {image}, target "{target}" ({device}) holds {room}', code="too_large")
        if numbers[1]:
            raise StorageRefused(f'target "{target}": {device} is write-protected', code="permission")

    async def has(self, program: str) -> bool:
        """Whether the system has a program."""
        rc, _ = await self.shell.status(f"command -v {quote(program)} >/dev/null", 10)
        return rc == 0

    async def unpacker(self, compression: str | None) -> str | None:
        """The program that unpacks, "" when there is nothing to unpack, None when the system has none for it."""
        if compression is None:
            return ""
        for program in _UNPACK[compression]:
            if await self.has(program.split()[0]):
                return program
        return None

    async def write(self, source: Source, device: str, size: int, timeout: float) -> None:
        """Fetch, unpack and write; returns when it is on the disk as far as ``sync`` tells."""
        unpack = await self.unpacker(source.compression)
        if unpack is None:
            raise ShellError(f"the flasher system cannot unpack {source.compression}")
        stages = [await self._fetch(source), *([unpack] if unpack else []), f"dd of={quote(device)} bs={_BLOCK}"]
        await self._pipeline(stages, device, 6, "writing", size, timeout)
        await self.sync()

    async def write_by_fls(
        self, binary: Source, program: str, sha256: str, image: str, device: str, timeout: float
    ) -> None:
        """Have the ``fls`` program, fetched from the exporter and compared with its digest, do the writing."""
        await self._command(
            f"{await self._fetch(binary)} >{self._scratch}/fls && chmod 755 {self._scratch}/fls", 120, "fetching fls"
        )
        lines = await self._command(f"sha256sum {self._scratch}/fls", 60, "the digest of fls")
        if not any(line.startswith(sha256) for line in lines):
            raise ShellError(f"{program} arrived damaged on the board")
        command = f"{self._scratch}/fls from-url -i 1.0 -n --o-direct {quote(image)} {quote(device)}"
        await self._pipeline([command], device, 6, "writing", 0, timeout)
        await self.sync()

    async def sync(self) -> None:
        """Everything to the disk."""
        self._say("syncing", 0, None)
        await self._command("sync", _SYNC_SECONDS, "sync")

    async def digest(self, device: str, size: int, timeout: float) -> str:
        """sha256 of the first bytes of the disk, read from the disk and not from the system's memory."""
        name = quote(device)
        await self._command(
            f"blockdev --flushbufs {name} 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches", 120, "dropping caches"
        )
        block = _BLOCK
        while size % block:
            block //= 2
        if block >= 512:
            read = [f"dd if={name} bs={block} count={size // block}"]
        else:
            read = [f"dd if={name} bs={_BLOCK} count={-(-size // _BLOCK)}", f"{{ head -c {size}; cat >/dev/null; }}"]
        await self._pipeline([*read, f"sha256sum >{self._scratch}/jl.sum"], device, 2, "verifying", size, timeout)
        lines = await self._command(f"cat {self._scratch}/jl.sum", 10, "the digest")
        found = re.search(r"\b[0-9a-f]{64}\b", "\n".join(lines))
        if found is None:
            raise ShellError(f"sha256sum answered {' / '.join(lines)!r}")
        return found.group()

    async def fetch_file(self, source: Source, path: str) -> None:
        """A small file from the exporter."""
        await self._command(f"{await self._fetch(source)} >{quote(path)}", 60, f"fetching {path}")

    async def _fetch(self, source: Source) -> str:
        url = quote(source.url)
        if await self.has("curl"):
            options = "".join(f' -H "${name}"' for name in source.headers)
            if source.insecure:
                options += " -k"
            if source.cacert:
                options += f" --cacert {quote(source.cacert)}"
            return f"curl -fsSL{options} {url}"
        if await self.has("wget"):
            if source.cacert:
                raise ShellError("the flasher system has no curl, and its wget cannot be told a CA certificate")
            options = "".join(f' --header "${name}"' for name in source.headers)
            if source.insecure:
                options += " --no-check-certificate"
            return f"wget -q -O -{options} {url}"
        raise ShellError("the flasher system has neither curl nor wget")

    async def _pipeline(
        self, stages: Sequence[str], device: str, field: int, phase: str, size: int, timeout: float
    ) -> None:
        """Run programs as a pipeline, all of which must succeed, while looking at how much the disk has done.

        Each leaves its own exit status: not every BusyBox knows ``pipefail``. field: index in the disk's ``stat``
        (https://docs.kernel.org/block/stat.html) of the sectors read (2) or written (6).
        """
        stat = f"/sys/class/block/{os.path.basename(device)}/stat"
        parts = [f"{{ {stage}; echo $? >{self._scratch}/jl.rc{number}; }}" for number, stage in enumerate(stages)]
        ended = " ".join(f"{self._scratch}/jl.rc{number}" for number in range(len(stages)))
        zeros = "0" * len(stages)
        command = (
            f"rm -f {ended}; ({' | '.join(parts)}) </dev/null 2>{self._scratch}/jl.err & P=$!; "
            f"while kill -0 $P 2>/dev/null; do echo jl-stat $(cat {stat}); sleep {self._interval:g}; done; wait $P; "
            f'tail -n 3 {self._scratch}/jl.err; [ "$(cat {ended} | tr -d "\\n")" = {zeros} ]'
        )
        await self._command(command, timeout, phase, watch=self._meter(field, phase, size), silence=self._stall)

    def _meter(self, field: int, phase: str, size: int) -> Callable[[str], None]:
        first: list[int] = []
        moved = [time.monotonic(), 0.0]

        def watch(text: str) -> None:
            found = re.findall(r"jl-stat ([\d ]+)\r?\n", text)
            if not found:
                return
            numbers = found[-1].split()
            sectors = int(numbers[field]) if len(numbers) > field else 0
            first.append(sectors)
            done = (sectors - first[0]) * 512
            if done != moved[1]:
                moved[:] = [time.monotonic(), done]
            elif time.monotonic() - moved[0] > self._stall:
                raise ShellError(f"{phase}: nothing has moved on the board for {self._stall:g} s ({done} bytes done)")
            self._say(phase, min(done, size) if size else done, size or None)

        return watch

    async def _command(
        self, command: str, timeout: float, what: str, *, watch: Callable[[str], None] | None = None,
        silence: float | None = None,
    ) -> list[str]:  # fmt: skip
        try:
            return await self.shell.command(command, timeout, watch=watch, silence=silence, what=what)
        except ShellError as error:
            if self.warnings:
                raise ShellError(f"{error.details} ({'; '.join(self.warnings)})") from None
            raise
