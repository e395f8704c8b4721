# SPDX-License-Identifier: Apache-2.0
"""Bytes of a file on the device: streamed in numbered lines, only what is damaged asked for again."""

from __future__ import annotations

import re
import shlex
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from .checksum import fingerprint
from .errors import DeviceError, VerifyFailed
from .line import Watch
from .link import ShellLink

_LINES = 256  # encoded lines in a block of the first pass
# When a block is damaged: lines per checksum of the rounds that find out where, and fetch only that.
_FINER = (16, *[1] * 60)
_COMPRESS_FROM = 8192  # bytes; below that starting gzip on the device costs more than it saves
_NUMBERED = re.compile(rb"^(\d+):([A-Za-z0-9+/=]+)$")


@dataclass(slots=True)
class _File:
    """What is known of a file in transit: its encoded lines by number, ``unit`` payload bytes each."""

    path: str
    size: int
    unit: int
    tool: str
    lines: dict[int, bytes] = field(default_factory=dict)

    @property
    def line_count(self) -> int:
        return -(-self.size // self.unit)

    def line_size(self, number: int) -> int:
        return min(self.unit, self.size - number * self.unit)

    def assembled(self, first: int, count: int) -> bytes | None:
        """The payload of a run of lines; None while one is missing."""
        numbers = range(first, min(first + count, self.line_count))
        if any(number not in self.lines for number in numbers):
            return None
        return b"".join(self.lines[number] for number in numbers)

    def verified(self, first: int, count: int, mark: str | None) -> bytes | None:
        """The payload of a run of lines if its checksum is ``mark``."""
        data = self.assembled(first, count)
        return data if data is not None and mark == fingerprint(data, self.tool) else None


class Receiver:
    """Downloads over one link."""

    def __init__(self, link: ShellLink, watch: Watch) -> None:
        self._link = link
        self._watch = watch
        self.moved = 0
        """Payload bytes that came over the line, repetitions included."""
        self.resumed = 0
        """Bytes that did not have to come, from an attempt before."""

    async def file(self, path: str, *, compress: bool = False) -> bytes:
        """The content of ``path`` on the device. Raises DeviceError, VerifyFailed."""
        mark, size = await self.fingerprint(path)
        data = None
        if compress and (packed := await self.pack(path, size)) is not None:
            data = inflate(await self.content(shlex.quote(packed[0]), packed[1]), size)
        if data is None or fingerprint(data, self._link.tools.checksum) != mark:
            data = await self.content(shlex.quote(path), size)
        if fingerprint(data, self._link.tools.checksum) != mark:
            raise VerifyFailed(f"{self._link.line.name}: {path} changed on the device while it was read")
        return data

    async def fingerprint(self, path: str) -> tuple[str, int]:
        """Fingerprint and size of ``path``."""
        code = f'_k {shlex.quote(path)}; _v="$_c $(($(wc -c <{shlex.quote(path)})))"'
        words = (await self._link.request(code, watch=self._watch)).value.split()
        if len(words) != 2 or not words[1].isdigit():
            raise DeviceError(f"{self._link.line.name}: the device cannot read {path}")
        return words[0], int(words[1])

    def usable(self, have: int, size: int) -> int:
        """How many of ``have`` bytes of an earlier attempt can be kept: whole blocks."""
        block = self._link.tools.codec.line_bytes * _LINES
        return min(have, size) // block * block

    async def pack(self, path: str, size: int, shell_path: str | None = None) -> tuple[str, int] | None:
        """Compress ``path`` on the device: path and size of the result, or None when that does not pay."""
        if not self._link.tools.gzip or size < _COMPRESS_FROM:
            return None
        packed = f"{self._link.scratch}/z"
        code = f"gzip -c <{shell_path or shlex.quote(path)} >$_T/z && _v=$(($(wc -c <$_T/z)))"
        answer = (await self._link.request(code, watch=self._watch)).value
        if not answer.isdigit() or int(answer) > size * 0.9:
            await self._link.request(": >$_T/z; _v=ok", watch=self._watch)
            return None
        return packed, int(answer)

    async def content(
        self,
        path: str,
        size: int,
        *,
        have: bytes = b"",
        on_block: Callable[[bytes], None] | None = None,
    ) -> bytes:
        """``size`` bytes of ``path`` (as the device's shell reads it); ``have`` is a verified beginning.

        ``on_block`` gets each further block, in order, once it is verified; what it raises ends the transfer.
        """
        file = _File(path, size, self._link.tools.codec.line_bytes, self._link.tools.checksum)
        block_bytes = file.unit * _LINES
        start = len(have) // block_bytes
        result = bytearray(have[: start * block_bytes])
        self.resumed = len(result)
        blocks = -(-size // block_bytes)
        damaged: list[int] = []
        done: dict[int, bytes] = {}

        def complete(block: int, mark: str | None) -> None:
            data = file.verified(block * _LINES, _LINES, mark)
            if data is None:
                damaged.append(block)
                return
            keep(block, data)

        def keep(block: int, data: bytes) -> None:
            done[block] = data
            for number in range(block * _LINES, min((block + 1) * _LINES, file.line_count)):
                file.lines.pop(number, None)
            while (ready := done.pop(len(result) // block_bytes, None)) is not None:
                result.extend(ready)
                if on_block is not None:
                    on_block(ready)

        if start < blocks:
            marks = await self._stream(file, start, blocks - 1, _LINES, True, complete)
            damaged.extend(block for block in range(start, blocks) if block not in marks)
            for block in sorted(set(damaged)):
                keep(block, await self._repair(file, block))
        return bytes(result)

    async def _repair(self, file: _File, block: int) -> bytes:
        pending = [(block * _LINES, _LINES)]
        for count in _FINER:
            pending = [piece for run in pending for piece in await self._narrow(file, *run, count)]
            if not pending:
                break
        data = file.assembled(block * _LINES, _LINES)
        if pending or data is None:
            raise VerifyFailed(f"{self._link.line.name}: block {block} of {file.path} does not arrive undamaged")
        return data

    async def _narrow(self, file: _File, first: int, lines: int, count: int) -> list[tuple[int, int]]:
        """Check a run of lines in pieces of ``count``, fetch the damaged ones once, return those still damaged."""
        last_line = min(first + lines, file.line_count) - 1
        pieces = range(first // count, last_line // count + 1)
        marks = await self._stream(file, pieces.start, pieces.stop - 1, count, False, None)
        still = []
        for piece in pieces:
            if file.verified(piece * count, count, marks.get(piece)) is None:
                again = await self._stream(file, piece, piece, count, True, None)
                if file.verified(piece * count, count, again.get(piece)) is None:
                    still.append((piece * count, count))
        return still

    async def _stream(
        self,
        file: _File,
        first: int,
        last: int,
        count: int,
        with_data: bool,
        complete: Callable[[int, str | None], None] | None,
    ) -> dict[int, str]:
        """Have the device send blocks ``first`` to ``last`` of ``count`` lines; returns their checksums.

        ``complete`` is called when a block that began has ended.
        """
        codec = self._link.tools.codec
        marks: dict[int, str] = {}
        current: int | None = None
        newest = 0

        def ended() -> None:
            if current is not None and complete is not None:
                complete(current, marks.get(current))

        def arrived(line: bytes, match: re.Match[bytes] | None) -> None:
            nonlocal current, newest
            if match is not None:
                words = (match.group(2) or b"").split()
                if match.group(1) == b"C":
                    ended()
                    current, newest = None, 0
                    if len(words) == 3 and words[1] == b"%d" % (count * file.unit) and words[0].isdigit():
                        current = int(words[0])
                        marks[current] = words[2].decode()
                return
            numbered = _NUMBERED.match(line)
            if numbered is None or current is None:
                return
            number = int(numbered.group(1))
            if not newest < number <= count:
                # Numbers start again: the header of the next block was damaged. It will be asked for again.
                ended()
                current = None
                return
            newest = number
            where = current * count + number - 1
            data = codec.decode(numbered.group(2))
            self.moved += len(data or b"")
            if data is not None and where < file.line_count and len(data) == file.line_size(where):
                file.lines[where] = data

        code = f"_s {file.path} {first} {last} {count * file.unit} {int(with_data)}"
        await self._link.request(code, watch=self._watch, on_line=arrived)
        ended()
        return marks


def inflate(packed: bytes, size: int) -> bytes | None:
    """The content of a gzip stream if it is whole and ``size`` bytes long."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        data = unpacker.decompress(packed, size + 1)
    except zlib.error:
        return None
    return data if unpacker.eof and len(data) == size else None
