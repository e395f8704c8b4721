# SPDX-License-Identifier: Apache-2.0
"""Counterparties for the console tests: shells on ptys, a line that damages bytes, emulated boards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from jumpstarter_agent.console import Chunk

UBOOT_ARM64 = "/usr/lib/u-boot/qemu_arm64/u-boot.bin"


class PtyConsole:
    """A program on a pty of its own, as a byte console."""

    def __init__(self, argv: list[str], cwd: Path, env: dict[str, str] | None = None) -> None:
        program = shutil.which(argv[0])
        assert program is not None, f"{argv[0]} is not installed"
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            base = {"PATH": os.environ["PATH"], "TERM": "vt100", "PS1": "# ", "HOME": str(cwd), "LC_ALL": "C.UTF-8"}
            os.execve(program, argv, base | (env or {}))
        os.set_blocking(self._fd, False)
        self._seq = 0
        self.written = bytearray()
        self.said = bytearray()

    async def chunks(self) -> AsyncIterator[Chunk]:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[bytes] = asyncio.Queue()

        def readable() -> None:
            try:
                data = os.read(self._fd, 65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                loop.remove_reader(self._fd)
            arrived.put_nowait(data)

        loop.add_reader(self._fd, readable)
        try:
            while data := await arrived.get():
                self.said += data
                yield Chunk(self._seq, data)
                self._seq += len(data)
        finally:
            loop.remove_reader(self._fd)

    async def write(self, data: bytes) -> None:
        self.written += data
        loop = asyncio.get_running_loop()
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                writable = asyncio.Event()
                loop.add_writer(self._fd, writable.set)
                await writable.wait()
                loop.remove_writer(self._fd)

    async def aclose(self) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self._fd)
            self.pid = 0


@dataclass
class Noise:
    """How a line damages bytes. Rates are per byte; ``spam`` lines are put in anywhere, as a kernel would."""

    seed: int
    drop: float = 0.0
    flip: float = 0.0
    insert: float = 0.0
    spam: float = 0.0
    spam_text: bytes = b"[   12.345678] usb 1-1: new high-speed USB device number 4 using xhci_hcd\r\n"
    damaged: int = 0
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def apply(self, data: bytes) -> bytes:
        out = bytearray()
        rate = self.drop + self.flip + self.insert + self.spam
        for byte in data:
            draw = self._random.random()
            if draw >= rate:
                out.append(byte)
                continue
            self.damaged += 1
            if draw < self.drop:
                continue
            if draw < self.drop + self.flip:
                # Bits of a printable character: what really happens on a UART, and the hardest to notice.
                out.append(byte ^ (1 << self._random.randrange(7)))
            elif draw < self.drop + self.flip + self.insert:
                out += bytes([self._random.randrange(32, 127), byte])
            else:
                out += self.spam_text
                out.append(byte)
        return bytes(out)


class NoisyConsole:
    """A byte console behind a line that damages what passes, differently in each direction."""

    def __init__(self, inner: PtyConsole, to_host: Noise, to_device: Noise) -> None:
        self.inner = inner
        self.to_host = to_host
        self.to_device = to_device
        self.enabled = True

    async def chunks(self) -> AsyncIterator[Chunk]:
        seq = 0
        async for chunk in self.inner.chunks():
            data = self.to_host.apply(chunk.data) if self.enabled else chunk.data
            if data:
                yield Chunk(seq, data)
                seq += len(data)

    async def write(self, data: bytes) -> None:
        # ^C is our way out; a real line may lose it as well, the next attempt sends it again.
        await self.inner.write(self.to_device.apply(data) if self.enabled else data)

    async def aclose(self) -> None:
        await self.inner.aclose()


class LosingConsole:
    """A byte console that loses just these pieces of what is typed, each once, in this order."""

    def __init__(self, inner: PtyConsole, *lost: bytes) -> None:
        self.inner = inner
        self.lost = list(lost)

    def chunks(self) -> AsyncIterator[Chunk]:
        return self.inner.chunks()

    async def write(self, data: bytes) -> None:
        if self.lost and self.lost[0] in data:
            before, _, after = data.partition(self.lost.pop(0))
            data = before + after
        await self.inner.write(data)

    async def aclose(self) -> None:
        await self.inner.aclose()


class ScriptedConsole:
    """A device that says what a test tells it to, and remembers what it was sent."""

    def __init__(self, answer: Callable[[bytes], bytes] | None = None) -> None:
        self._queue: asyncio.Queue[Chunk | None] = asyncio.Queue()
        self._seq = 0
        self._answer = answer
        self.written = bytearray()

    def say(self, data: bytes, *, skip: int = 0, event: str = "") -> None:
        """``skip``: bytes that were lost before these."""
        self._seq += skip
        self._queue.put_nowait(Chunk(self._seq, data, event))
        self._seq += len(data)

    def end(self) -> None:
        self._queue.put_nowait(None)

    async def chunks(self) -> AsyncIterator[Chunk]:
        while (chunk := await self._queue.get()) is not None:
            yield chunk

    async def write(self, data: bytes) -> None:
        self.written += data
        if self._answer is not None and (answer := self._answer(data)):
            self.say(answer)

    async def aclose(self) -> None:
        return None


class Board:
    """An emulated board: its serial port is a unix socket of ours, so that not one byte is missed."""

    def __init__(self, directory: Path, disk: Path | None = None, smp: int = 1) -> None:
        self._path = directory / "serial.sock"
        self._disk = disk
        self._smp = smp
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen(1)
        self._listener.setblocking(False)
        self._process: subprocess.Popen[bytes] | None = None
        self._peer: socket.socket | None = None
        self._arrivals: asyncio.Event = asyncio.Event()
        self._seq = 0

    async def on(self) -> None:
        argv = ["qemu-system-aarch64", "-M", "virt", "-accel", "tcg", "-cpu", "cortex-a57", "-m", "512"]
        argv += ["-smp", str(self._smp), "-display", "none", "-monitor", "none", "-bios", UBOOT_ARM64, "-nic", "none"]
        argv += ["-chardev", f"socket,id=serial0,path={self._path},server=off", "-serial", "chardev:serial0"]
        if self._disk is not None:
            argv += ["-drive", f"if=none,file={self._disk},format=raw,id=d,snapshot=on"]
            argv += ["-device", "virtio-blk-device,drive=d"]
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        # An emulator that refuses its arguments never connects.
        async with asyncio.timeout(20):
            peer, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        peer.setblocking(False)
        self._peer = peer
        self._arrivals.set()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def cycle(self) -> None:
        self.kill()
        await self.on()

    async def chunks(self) -> AsyncIterator[Chunk]:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrivals.wait()
            self._arrivals.clear()
            assert self._peer is not None
            peer = self._peer
            while data := await _received(loop, peer):
                yield Chunk(self._seq, data)
                self._seq += len(data)
            peer.close()
            yield Chunk(self._seq, b"", "lost: the emulator closed it")

    async def write(self, data: bytes) -> None:
        if self._peer is None:
            raise OSError("the board is off")
        await asyncio.get_running_loop().sock_sendall(self._peer, data)

    async def aclose(self) -> None:
        self.kill()
        if self._peer is not None:
            self._peer.close()
        self._listener.close()


async def _received(loop: asyncio.AbstractEventLoop, peer: socket.socket) -> bytes:
    try:
        return await loop.sock_recv(peer, 65536)
    except ConnectionResetError:
        return b""


def pass_time(seconds: float) -> None:
    """Let the event loop believe that so many seconds have passed: a time limit is over at once, and not before."""
    loop = asyncio.get_running_loop()
    time = loop.time
    loop.time = lambda: time() + seconds  # type: ignore[method-assign]


def shells() -> list[list[str]]:
    """The shells of this machine that devices have; busybox is what most of them run."""
    known = [["busybox", "ash", "-i"], ["dash", "-i"], ["bash", "--norc", "-i"]]
    return [argv for argv in known if shutil.which(argv[0])]
