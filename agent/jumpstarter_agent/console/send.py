# SPDX-License-Identifier: Apache-2.0
"""Bytes to a file on the device: blocks in flight without waiting, only damaged lines sent again."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .checksum import fingerprint
from .errors import DeviceError, VerifyFailed
from .line import Watch
from .link import NotAnswering, Refused, Reply, ShellLink

Progress = Callable[[int, int], None]

_FIRST_BLOCK = 2048  # bytes; blocks grow while they take less than _BLOCK_SECONDS and arrive whole
_LARGEST_BLOCK = 24 * 1024
_BLOCK_SECONDS = 2.0
_WINDOW = 2  # blocks in flight: enough to keep the line busy, little enough to stop quickly
_END = b":\n:\n:\n"  # sed of busybox reads one line ahead; the third is for a line that gets lost
_ROUNDS = 60  # how often the damaged lines of one block are sent again


@dataclass(frozen=True, slots=True)
class _Block:
    number: int
    start: int
    data: bytes


class Sender:
    """Uploads over one link; ``rate`` is the payload bytes per second seen lately."""

    def __init__(self, link: ShellLink, watch: Watch) -> None:
        self._link = link
        self._watch = watch
        self.moved = 0
        """Payload bytes sent, repetitions included."""
        self.rate: float | None = None
        self._block_size = _FIRST_BLOCK

    async def file(
        self,
        data: bytes,
        path: str,
        *,
        keep: int = 0,
        on_block: Callable[[int], None] | None = None,
        shell_path: str | None = None,
        shown: str | None = None,
    ) -> None:
        """Make ``path`` on the device hold ``data``; its first ``keep`` bytes are there already.

        ``shell_path`` is the path as the device's shell shall read it, when quoting ``path`` would not do;
        ``shown`` is its name in errors.
        ``on_block`` is told how many bytes are verified on the device; what it raises ends the upload (the verified
        part stays). Raises DeviceError when the device cannot write, VerifyFailed when a block never arrives whole.
        """
        link = self._link
        where = shell_path or shlex.quote(path)
        empty = "" if keep else '; (: >"$_P") || _v=no'
        if (await link.request(f"_begin {where} 0{empty}", watch=self._watch)).value != "ok":
            raise DeviceError(f"{link.line.name}: the device cannot write {shown or path}")
        todo = _Blocks(data, keep)
        flying: list[tuple[int, bytes, _Block, float]] = []
        failed: list[_Block] = []
        loop = asyncio.get_running_loop()
        done = keep
        ended = False
        while True:
            while not ended and not failed and len(flying) < _WINDOW:
                block = todo.take(self._block_size)
                if block is None:
                    ended = True
                    break
                flying.append(await self._launch(block))
            if not flying:
                for block in failed:
                    await self._repair(block)
                    done = block.start + len(block.data)
                failed.clear()
                if on_block is not None:
                    on_block(done)
                if ended:
                    break
                continue
            request_id, frame, block, sent_at = flying.pop(0)
            verdict = await self._landed(request_id, block)
            if verdict == "bad":
                failed.append(block)
                self._block_size = max(_FIRST_BLOCK, self._block_size // 2)
                continue
            took = loop.time() - sent_at
            self.rate = len(block.data) * (len(flying) + 1) / max(took, 1e-6)
            if took < _BLOCK_SECONDS * _WINDOW:
                self._block_size = min(self._block_size * 2, _LARGEST_BLOCK)
            elif took > 4 * _BLOCK_SECONDS * _WINDOW:
                self._block_size = max(_FIRST_BLOCK // 4, self._block_size // 2)
            if not failed:
                done = block.start + len(block.data)
                if on_block is not None:
                    try:
                        on_block(done)
                    except BaseException:
                        await self._drain(flying)
                        raise

    async def _launch(self, block: _Block) -> tuple[int, bytes, _Block, float]:
        link = self._link
        mark = fingerprint(block.data, link.tools.checksum)
        request_id, frame = link.frame(f"_b {block.number} {mark}", [])
        await link.line.write(frame + b"".join(self._lines(block)) + _END)
        self.moved += len(block.data)
        return request_id, frame, block, asyncio.get_running_loop().time()

    def _lines(self, block: _Block, only: set[int] | None = None) -> Iterator[bytes]:
        step = self._link.tools.codec.up_bytes
        encode = self._link.tools.codec.encode
        for number, at in enumerate(range(0, len(block.data), step)):
            if only is None or number in only:
                yield b"#%04d:%s\n" % (number, encode(block.data[at : at + step]))

    async def _landed(self, request_id: int, block: _Block) -> str:
        """Whether a block arrived: ``ok`` or ``bad``."""
        try:
            # Sent again, the bare request would swallow what follows; only the end mark may be repeated.
            reply = await self._link.reply(request_id, _END, watch=self._watch, patience=self._patience())
        except Refused:
            return "bad"
        except NotAnswering:
            if not await self._link.interrupt():
                raise
            return "bad"
        return self._verdict(reply, request_id, block)

    def _patience(self) -> float:
        """Seconds the blocks in flight may take before something must have been lost."""
        return 1.0 + 2 * _WINDOW * (self._block_size / self.rate if self.rate else 1.0)

    def _verdict(self, reply: Reply, request_id: int, block: _Block) -> str:
        appended, _, word = reply.value.partition(" ")
        if word == "full":
            raise DeviceError(
                f"{self._link.line.name}: the device cannot write on: no space, no memory or an input/output error"
            )
        if reply.id == request_id:
            return "ok" if word == "ok" else "bad"
        # The reply to a later block: what it says has been appended includes ours or not.
        return "ok" if appended.isdigit() and int(appended) > block.number else "bad"

    async def _drain(self, flying: list[tuple[int, bytes, _Block, float]]) -> None:
        for request_id, _, block, _ in flying:
            with contextlib.suppress(NotAnswering, DeviceError):
                await self._landed(request_id, block)
        flying.clear()

    async def _repair(self, block: _Block) -> None:
        link = self._link
        encode, step = link.tools.codec.encode, link.tools.codec.up_bytes
        wanted = {
            number: fingerprint(encode(block.data[at : at + step]), link.tools.checksum)
            for number, at in enumerate(range(0, len(block.data), step))
        }
        arrived: dict[int, str] = {}

        def listed(line: bytes, match: re.Match[bytes] | None) -> None:
            found = _LISTED.search(line)
            if match is None and found is not None:
                size = f".{found.group(2).decode()}" if found.group(2) else ""
                arrived[int(found.group(3))] = found.group(1).decode() + size

        await link.request("rm -f $_T/l.*; _v=ok", watch=self._watch)
        await link.request(f"_y {block.number} {len(wanted)}", watch=self._watch, on_line=listed)
        mark = fingerprint(block.data, link.tools.checksum)
        for _ in range(_ROUNDS):
            bad = {number for number, mark_ in wanted.items() if arrived.get(number) != mark_}
            if bad:
                for number in bad:
                    arrived.pop(number, None)
                lines = b"".join(self._lines(block, bad))
                self.moved += step * len(bad)
                request_id, frame = link.frame(f"_w {block.number} {len(wanted)}")
                await link.line.write(frame + lines + _END)
                try:
                    await link.reply(request_id, _END, watch=self._watch, on_line=listed, patience=self._patience())
                except Refused:
                    continue
                except NotAnswering:
                    if not await link.interrupt():
                        raise
                continue
            reply = await link.request(f"_j {block.number} {mark}", watch=self._watch)
            if self._verdict(reply, reply.id, block) == "ok":
                return
            arrived.clear()
            await link.request(f"_y {block.number} {len(wanted)}", watch=self._watch, on_line=listed)
        raise VerifyFailed(f"{link.line.name}: {len(block.data)} bytes do not reach the device undamaged")


_LISTED = re.compile(rb"(?<![0-9a-f])([0-9a-f]+)(?: (\d+))? +\S*/l\.(\d{4})$")


class _Blocks:
    """Cuts data into blocks of a size that is asked for each time."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data = data
        self._start = start
        self._number = 0

    def take(self, size: int) -> _Block | None:
        """The next block of at most ``size`` bytes, or None at the end."""
        if self._start >= len(self._data):
            return None
        block = _Block(self._number, self._start, self._data[self._start : self._start + size])
        self._start += len(block.data)
        self._number += 1
        return block
