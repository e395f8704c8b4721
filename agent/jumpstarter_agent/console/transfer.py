# SPDX-License-Identifier: Apache-2.0
"""Files over a prepared shell: verified by digest, resumed where they stopped, put in place by rename."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .checksum import digest, fingerprint
from .errors import ConsoleError, ConsoleTimeout, DeviceError, TransferRefused, VerifyFailed
from .line import Watch
from .link import ShellLink
from .receive import Receiver, inflate
from .send import Sender

Progress = Callable[[int, int], None]

_ALWAYS_SLOW = 64 << 20  # bytes nobody wants to see on a console without having said so
_SLOW_SECONDS = 900.0
_JUDGE_AFTER = 3.0  # seconds of transfer before its speed is judged
_HOPE = 1.25  # a transfer may still become faster by so much
_PACK_FROM = 512  # bytes


@dataclass(frozen=True, slots=True)
class TransferResult:
    """``sha256`` is of the content; ``moved_bytes`` what really went over the line (compressed, repetitions
    included), ``resumed_bytes`` what was there from an attempt before; ``verified_by`` the device's digest tool."""

    changed: bool
    size: int
    sha256: str
    moved_bytes: int
    resumed_bytes: int
    seconds: float
    verified_by: str


@dataclass(frozen=True, slots=True)
class _DeviceFile:
    """``kind``: none, dir, other or file; the rest is of a file."""

    kind: str
    digest: str = ""
    size: int = 0
    mode: int = 0
    owner: str = ""


class _Meter:
    """Reports progress and refuses what would take too long, as soon as the speed is known."""

    def __init__(
        self, what: str, total: int, start: int, allow_slow: bool, deadline: float | None, progress: Progress | None
    ) -> None:
        """deadline: when the transfer will be ended, in the time of the event loop."""
        self._what = what
        self._total = total
        self._start = start
        self._allow = allow_slow
        self._deadline = deadline
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()

    def __call__(self, done: int) -> None:
        if self._progress is not None:
            self._progress(done, self._total)
        now = self._loop.time()
        elapsed = now - self._began
        if self._allow or elapsed < _JUDGE_AFTER or done <= self._start:
            return
        rate = (done - self._start) / elapsed
        left = (self._total - done) / rate
        has = None if self._deadline is None else max(self._deadline - now, 0)
        if left > _SLOW_SECONDS:
            takes = f"takes {left / 60:.0f} minutes; use the network or the storage driver, or allow slow transfers"
        elif has is not None and left > has * _HOPE:
            takes = f"takes {left:.0f} s, and {has:.0f} s are left; use the network or the storage driver, or more time"
        else:
            return
        moves = f"{self._total - done} bytes are left and the console moves {rate:.0f} bytes/s"
        raise TransferRefused(f"{self._what}: {moves}, which {takes}", rate=rate, seconds=left)


async def put(
    link: ShellLink,
    content: bytes,
    dest: str,
    *,
    mode: int | None = None,
    check: bool = False,
    allow_slow: bool = False,
    deadline: float | None = None,
    progress: Progress | None = None,
) -> TransferResult:
    """Make ``dest`` on the device a file with ``content`` (and ``mode``, else the mode it has).

    Unchanged when it is one already. ``deadline``, in the event loop's time, is the caller's to keep: what cannot end
    by then is refused as soon as that is seen, unless ``allow_slow``.

    Raises DeviceError, TransferRefused, VerifyFailed.
    """
    name = link.line.name
    what = f"{name}: put {dest}"
    watch = link.line.watch(f"put of {dest}")
    loop = asyncio.get_running_loop()
    began = loop.time()
    sha = hashlib.sha256(content).hexdigest()
    quoted = _quoted(dest, what)
    found = await _look(link, watch, quoted, what)
    if found.kind in ("dir", "other"):
        raise DeviceError(f"{what}: is {_KINDS[found.kind]} on the device; name a file")
    same = found.kind == "file" and found.size == len(content) and found.digest == _digest(content, link)
    if check or (same and mode in (None, found.mode)):
        return TransferResult(not same or mode not in (None, found.mode), len(content), sha, 0, 0, 0.0, _tool(link))
    if same:
        await _command(link, watch, f"chmod {mode:o} {quoted}", what)
        return TransferResult(True, len(content), sha, 0, 0, loop.time() - began, _tool(link))
    if len(content) > _ALWAYS_SLOW and not allow_slow:
        raise TransferRefused(
            f"{what}: {len(content)} bytes are too many for a console; use the network or the storage driver, or allow"
            " slow transfers"
        )
    link.line.transcript.note(f"put {dest} ({len(content)} B)")
    packed = gzip.compress(content, 6, mtime=0) if link.tools.gzip and len(content) >= _PACK_FROM else content
    zipped = len(packed) < len(content) * 0.9
    payload = packed if zipped else content
    target = PurePosixPath(dest)
    stem = str(target.parent / f".{target.name[:100]}.{sha[:12]}.{'gz.' if zipped else ''}part")
    part, whole = _quoted(stem, what), _quoted(stem.removesuffix(".part") + ".new", what)
    await _clean(link, watch, target, part, what)
    keep = await _resumable(link, watch, part, payload)
    sender = Sender(link, watch)
    meter = _Meter(what, len(payload), keep, allow_slow, deadline, progress)
    await sender.file(payload, stem, keep=keep, on_block=meter, shell_path=part, shown=dest)
    finish = f"gzip -dc <{part} >{whole}" if zipped else f"mv -f {part} {whole}"
    await _command(link, watch, finish, what)
    arrived = (await link.request(f"set -- $({_tool(link)} <{whole}); _v=$1", watch=watch)).value
    if arrived != _digest(content, link):
        await link.request(f"rm -f {part} {whole}; _v=ok", watch=watch)
        raise VerifyFailed(f"{what}: its {_tool(link)} on the device is {arrived or 'unknown'} after the transfer")
    if mode is not None:
        await _command(link, watch, f"chmod {mode:o} {whole}", what)
    elif found.kind == "file":
        await _command(link, watch, f"chmod {found.mode:o} {whole}", what)
    else:
        await _command(link, watch, f"(umask $_U; chmod =rw {whole})", what)
    if found.owner and link.tools.uid == 0:
        await _command(link, watch, f"chown {found.owner} {whole}", what)
    await _command(link, watch, f"mv -f {whole} {quoted}", what)
    await link.request(f"rm -f {part}; _v=ok", watch=watch)
    return TransferResult(True, len(content), sha, sender.moved, keep, loop.time() - began, _tool(link))


async def fetch(
    link: ShellLink,
    src: str,
    dest: Path,
    *,
    check: bool = False,
    allow_slow: bool = False,
    deadline: float | None = None,
    progress: Progress | None = None,
) -> TransferResult:
    """Make the local file ``dest`` a copy of ``src`` on the device. Unchanged when it is one already.

    ``sha256`` of an unfetched file in check mode is empty when the device cannot compute it. ``deadline`` as in `put`.
    """
    what = f"{link.line.name}: fetch {src}"
    watch = link.line.watch(f"fetch of {src}")
    loop = asyncio.get_running_loop()
    began = loop.time()
    quoted = _quoted(src, what)
    found = await _look(link, watch, quoted, what)
    if found.kind != "file":
        raise DeviceError(f"{what}: {_KINDS[found.kind]} on the device; only files can be fetched")
    tool = _tool(link)
    present = await asyncio.to_thread(_local, dest)
    if present is not None and len(present) == found.size and _digest(present, link) == found.digest:
        return TransferResult(False, found.size, hashlib.sha256(present).hexdigest(), 0, 0, 0.0, tool)
    if check:
        return TransferResult(True, found.size, found.digest if tool == "sha256sum" else "", 0, 0, 0.0, tool)
    if not dest.parent.is_dir():
        raise ConsoleError(f"{what}: the local directory {dest.parent} does not exist")
    if found.size > _ALWAYS_SLOW and not allow_slow:
        raise TransferRefused(
            f"{what}: {found.size} bytes are too many for a console; use the network or the storage driver, or allow"
            " slow transfers"
        )
    link.line.transcript.note(f"fetch {src} ({found.size} B)")
    receiver = Receiver(link, watch)
    source, size = (await receiver.pack(src, found.size, shell_path=quoted)) or (None, found.size)
    content = b""
    for attempt in (1, 2):
        part = dest.parent / f".{dest.name[:100]}.{found.digest[:12]}.{'gz.' if source else ''}part"
        have = (await asyncio.to_thread(_local, part)) or b""
        meter = _Meter(what, size, len(have), allow_slow, deadline, progress)
        data = await _receive(receiver, source, quoted, size, part, have, meter)
        content = (inflate(data, found.size) or b"") if source else data
        if _digest(content, link) == found.digest:
            break
        part.unlink(missing_ok=True)
        # A part of an earlier run may be stale, and on a very noisy line a damaged piece may pass for a good one.
        if attempt == 2:
            raise VerifyFailed(f"{what}: what arrived is not what the device's {tool} says (does the file change?)")
    await asyncio.to_thread(_place, content, dest)
    part.unlink(missing_ok=True)
    if source:
        await link.request(": >$_T/z; _v=ok", watch=watch)
    return TransferResult(
        True,
        found.size,
        hashlib.sha256(content).hexdigest(),
        receiver.moved,
        receiver.resumed,
        loop.time() - began,
        tool,
    )


async def _receive(
    receiver: Receiver, source: str | None, quoted: str, size: int, part: Path, have: bytes, meter: _Meter
) -> bytes:
    done = receiver.usable(len(have), size)
    with part.open("r+b" if have else "wb") as file:
        file.truncate(done)
        file.seek(done)

        def block(data: bytes) -> None:
            nonlocal done
            file.write(data)
            file.flush()
            done += len(data)
            meter(done)

        path = quoted if source is None else shlex.quote(source)
        return await receiver.content(path, size, have=have[:done], on_block=block)


_KINDS = {
    "none": "there is no such file",
    "dir": "a directory",
    "other": "neither a file nor a directory",
    "file": "a file",
}


async def _look(link: ShellLink, watch: Watch, quoted: str, what: str) -> _DeviceFile:
    code = (
        f"if [ -d {quoted} ]; then _v=dir; elif [ -f {quoted} ]; then "
        f'set -- $({_tool(link)} <{quoted}) x; _v="file $1 $(($(wc -c <{quoted}))) $(ls -ldn {quoted})"; '
        f"elif [ -e {quoted} ]; then _v=other; else _v=none; fi"
    )
    words = (await link.request(code, watch=watch)).value.split()
    if words[:1] != ["file"]:
        return _DeviceFile(words[0] if words else "none")
    if len(words) < 7 or words[1] == "x" or not words[2].isdigit():
        raise DeviceError(f"{what}: the device cannot read it (permission?)")
    return _DeviceFile("file", words[1], int(words[2]), _mode(words[3]), f"{words[5]}:{words[6]}")


def _mode(letters: str) -> int:
    """File mode from the first column of ``ls -l``."""
    mode = 0
    for position, letter in enumerate(letters[1:10]):
        if letter not in "-ST":
            mode |= 1 << (8 - position)
        if letter in "sStT":
            mode |= 0o4000 >> (position // 3)
            if letter in "ST":
                mode &= ~(1 << (8 - position))
    return mode


async def _command(link: ShellLink, watch: Watch, command: str, what: str) -> None:
    """Run an internal command; its failure is an error with the device's own words."""
    code = f"{{ {command}; }} >$_T/m 2>&1; _v=$?; [ $_v = 0 ] || _msg"
    value = (await link.request(code, watch=watch)).value
    if value != "0":
        raise DeviceError(f"{what}: the device says: {value.strip() or 'failed without a word'}")


async def _clean(link: ShellLink, watch: Watch, target: PurePosixPath, part: str, what: str) -> None:
    pattern = _quoted(str(target.parent / f".{target.name[:100]}"), what)
    code = f'for _q in {pattern}.????????????.*part; do [ "$_q" = {part} ] || rm -f "$_q"; done; _v=ok'
    await link.request(code, watch=watch)


async def _resumable(link: ShellLink, watch: Watch, part: str, payload: bytes) -> int:
    """How many bytes of ``payload`` an earlier attempt left on the device."""
    code = f'_v=; [ -s {part} ] && {{ _k {part}; _v="$_c $(($(wc -c <{part})))"; }}'
    words = (await link.request(code, watch=watch)).value.split()
    if len(words) != 2 or not words[1].isdigit() or int(words[1]) > len(payload):
        return 0
    size = int(words[1])
    return size if fingerprint(payload[:size], link.tools.checksum) == words[0] else 0


def _tool(link: ShellLink) -> str:
    return link.tools.digest if link.tools.digest != "none" else link.tools.checksum


def _digest(content: bytes, link: ShellLink) -> str:
    return digest(content, _tool(link))


def _quoted(path: str, what: str) -> str:
    if not path or "\0" in path or not path.isprintable():
        raise ConsoleError(f"{what}: the path {path!r} cannot be typed on a console")
    if path == "~" or path.startswith("~/"):
        return '"$HOME"' + shlex.quote(path[1:] or "/")
    # A leading dash is an option for every tool.
    return shlex.quote(f"./{path}" if path.startswith("-") else path)


def _local(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _place(content: bytes, dest: Path) -> None:
    mode = dest.stat().st_mode & 0o7777 if dest.exists() else None
    handle, temporary = tempfile.mkstemp(dir=dest.parent, prefix=f".{dest.name[:100]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        if mode is None:
            umask = os.umask(0o077)
            os.umask(umask)
            mode = 0o666 & ~umask
        os.chmod(temporary, mode)
        os.replace(temporary, dest)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def timed_out(what: str, seconds: float) -> ConsoleTimeout:
    """A transfer that was cut by its time limit."""
    return ConsoleTimeout(f"{what}: not finished within {seconds:g} s; what arrived stays, the next attempt resumes")
