# SPDX-License-Identifier: Apache-2.0
"""From a shell prompt to a running device program, over a line that may damage anything."""

from __future__ import annotations

import asyncio
import re
import secrets
import shlex

from .checksum import digest
from .device_shell import pieces, program, unpack_command
from .errors import ConsoleTimeout, DeviceToolMissing
from .expect import Match
from .line import INTERRUPT, ConsoleLine, Watch
from .link import ShellLink

_TOOLS = ("cksum", "md5sum", "sha256sum", "sha1sum")
_TRIES = 12
# Directories for the scratch files, those in memory first.
_PLACES = '/dev/shm /run /tmp "$TMPDIR" /var/tmp "$HOME" .'


async def answers(line: ConsoleLine, watch: Watch, timeout: float, *, prefix: str = "") -> int | None:
    """Whether a shell reads the console: it must print a word that the echo of the question does not contain.

    Returns the position after the answer, or None. ``prefix`` is a command to run before.
    """
    found = await _answer(line, watch, timeout, secrets.token_hex(3), prefix)
    return found.end_seq if found else None


async def _answer(line: ConsoleLine, watch: Watch, timeout: float, nonce: str, prefix: str = "") -> Match | None:
    since = line.ring.end
    await line.write(f' {prefix}echo "@"p"{nonce}@"\n'.encode())
    return await line.expect(f"@p{nonce}@", since=since, timeout=timeout, guard=watch.check)


async def _is_quiet(line: ConsoleLine, watch: Watch, timeout: float, setup: str) -> bool:
    """Whether the terminal does what it was told: what is typed does not come back. It is told once more."""
    nonce = secrets.token_hex(3)
    found = await _answer(line, watch, timeout, nonce, setup)
    # Two marks of an echo, because one of them may arrive damaged.
    return found is not None and nonce.encode() not in found.before and b"echo" not in found.before


async def prepare(line: ConsoleLine, watch: Watch, *, quiet_kernel: bool = True, timeout: float = 60) -> ShellLink:
    """Start the device program in the shell that waits at a prompt; returns the link to it.

    Sets the terminal up (no echo, no flow control characters, no job control keys), forgets the history file, and
    as root silences kernel messages below emergencies unless ``quiet_kernel`` is false. Raises ConsoleTimeout when
    no shell answers, DeviceToolMissing when the device cannot run the program.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    said = line.transcript.lines_said
    setup = (
        "stty -echo -ixon -ixoff -iexten isig icanon icrnl 2>/dev/null; stty susp undef 2>/dev/null;"
        " stty eof undef 2>/dev/null; unset HISTFILE TMOUT; "
    )
    answered = False
    for patience in (1.5, 2.0, 3.0, 5.0, 8.0):
        if await answers(line, watch, min(patience, deadline - loop.time()), prefix=setup) is not None:
            answered = True
            # A damaged stty does nothing at all, and the first byte that becomes a ^S would stop the console then. A
            # device that has no stty is taken as it is.
            if await _is_quiet(line, watch, min(patience, deadline - loop.time()), setup):
                break
        await line.write(INTERRUPT + b"\n")
    if not answered:
        raise line.timeout_error("the preparation of the shell: no answer to echo", timeout)
    nonce = secrets.token_hex(2)
    scratch = await _make_scratch(line, watch, nonce, deadline)
    checksum = await _find_checksum(line, watch, nonce, deadline)
    text = f"set -- {nonce} {shlex.quote(scratch)} {checksum}\n{program()}"
    await _upload_program(line, watch, nonce, scratch, checksum, text, deadline)
    link = await _start(line, watch, nonce, scratch, checksum, text, deadline)
    line.tracker.framed = True
    await link.hello(watch)
    if quiet_kernel and link.tools.uid == 0:
        await link.request("_do dmesg -n 1", watch=watch)
    line.transcript.forget(said)
    return link


async def _ask(line: ConsoleLine, watch: Watch, command: str, answer: str, timeout: float) -> re.Match[bytes] | None:
    since = line.ring.end
    await line.write(command.encode())
    found = await line.expect(answer, since=since, timeout=timeout, guard=watch.check)
    return re.compile(answer.encode(), re.MULTILINE).search(found.match) if found else None


async def _make_scratch(line: ConsoleLine, watch: Watch, nonce: str, deadline: float) -> str:
    loop = asyncio.get_running_loop()
    command = (
        f' for _T in {_PLACES}; do [ -d "$_T" ] && [ -w "$_T" ] && (umask 77; mkdir -p "$_T/.jl-{nonce}") 2>/dev/null'
        f' && break; _T=; done; _T=${{_T:+$_T/.jl-{nonce}}}; echo "@"d"{nonce} $_T@"\n'
    )
    refusals = 0
    for _ in range(_TRIES):
        found = await _ask(line, watch, command, f"@d{nonce} ([^@\r\n]*)@", min(2.0, deadline - loop.time()))
        if found is None:
            if loop.time() >= deadline:
                break
            await line.write(INTERRUPT + b"\n")
            continue
        scratch = found.group(1).decode("utf-8", "replace")
        refusals += not scratch
        if refusals < 3 and not scratch:
            # Perhaps the question was damaged.
            continue
        if not scratch:
            raise DeviceToolMissing(
                f"{line.name}: no directory of the device is writable (tried {_PLACES}); mount a tmpfs on /tmp"
            )
        # A name that arrived damaged does not exist there.
        exists = f' [ -d {shlex.quote(scratch)} ] && echo "@"y"{nonce}@" || echo "@"n"{nonce}@"\n'
        found = await _ask(line, watch, exists, f"@([yn]){nonce}@", min(2.0, deadline - loop.time()))
        if found is not None and found.group(1) == b"y":
            return scratch
    raise line.timeout_error("the preparation of the shell: scratch directory", 60)


async def _find_checksum(line: ConsoleLine, watch: Watch, nonce: str, deadline: float) -> str:
    tools = " ".join(_TOOLS)
    command = f' for _k in {tools} none; do command -v $_k >/dev/null && break; done; echo "@"k"{nonce} $_k@"\n'
    loop = asyncio.get_running_loop()
    refusals = 0
    while loop.time() < deadline:
        found = await _ask(line, watch, command, f"@k{nonce} ([a-z0-9]+)@", min(1.5, deadline - loop.time()))
        tool = found.group(1).decode() if found is not None else ""
        if tool in _TOOLS:
            return tool
        refusals += tool == "none"
        if refusals == 3:  # once may be a question that was damaged
            raise DeviceToolMissing(f"{line.name}: the device has none of {', '.join(_TOOLS)}")
        await line.write(INTERRUPT + b"\n")
    raise line.timeout_error("the preparation of the shell: checksum tool", 60)


async def _upload_program(
    line: ConsoleLine, watch: Watch, nonce: str, scratch: str, checksum: str, text: str, deadline: float
) -> None:
    """All pieces at once and one look at the result; what is damaged then goes piece by piece."""
    texts = pieces(text)
    where = shlex.quote(scratch)
    writes = [f" printf %s {shlex.quote(piece)} >{where}/a.{number:02}" for number, piece in enumerate(texts)]
    check = f' for _q in {where}/a.*; do echo "$_q $({checksum} <$_q)"; done; echo "@"z"{nonce}@"\n'
    await line.write("".join(f"{write}\n" for write in writes).encode())
    found = await _ask(line, watch, check, f"(?s)^(.*?)@z{nonce}@", 3.0)
    said = found.group(1).decode("utf-8", "replace").replace("\r", "") if found is not None else ""
    missing = [n for n, piece in enumerate(texts) if f"a.{n:02} {_sum(piece, checksum)}" not in said]
    loop = asyncio.get_running_loop()
    while missing:
        number = missing[0]
        write = f'{writes[number]}; echo "@"s"{nonce} {number} $({checksum} <{where}/a.{number:02})@"\n'
        found = await _ask(line, watch, write, rf"@s{nonce} {number} ([^@\r\n]*)@", min(1.5, deadline - loop.time()))
        if found is not None and found.group(1).decode("utf-8", "replace").startswith(_sum(texts[number], checksum)):
            missing.pop(0)
            continue
        if loop.time() >= deadline:
            raise line.timeout_error("the preparation of the shell: upload of the device program", 60)
        # A damaged quote may have left the shell in the middle of a word: ^C.
        await line.write(INTERRUPT + b"\n")


def _said(text: str, tool: str) -> str:
    """What ``tool`` prints for ``text`` on its standard input."""
    return _sum(text, tool) + ("" if tool == "cksum" else "  -")


def _sum(text: str, tool: str) -> str:
    return digest(text.encode(), tool) + (f" {len(text)}" if tool == "cksum" else "")


async def _start(
    line: ConsoleLine, watch: Watch, nonce: str, scratch: str, checksum: str, text: str, deadline: float
) -> ShellLink:
    loop = asyncio.get_running_loop()
    where = shlex.quote(scratch)
    names = " ".join(f"a.{number:02}" for number in range(len(pieces(text))))
    command = (
        f" (cd {where} && cat {names}) | {unpack_command()} >{where}/a;"
        f' [ "$({checksum} <{where}/a)" = "{_said(text, checksum)}" ] &&'
        f' {{ sh {where}/a; echo "@"{nonce} X; }}\n'
    )
    while True:
        since = line.ring.end
        await line.write(command.encode())
        started = await line.expect(
            rf"@{nonce} [HI]\r?$", since=since, timeout=min(2.0, deadline - loop.time()), guard=watch.check
        )
        if started is not None:
            return ShellLink(line, nonce, scratch, checksum, line.ring.end)
        if loop.time() >= deadline:
            raise ConsoleTimeout(f"{line.name}: the device program does not start; last: {line.transcript.tail(3)}")
        # Perhaps it runs and its greeting was damaged: ^C makes it greet again.
        since = line.ring.end
        await line.write(INTERRUPT)
        started = await line.expect(rf"@{nonce} I", since=since, timeout=1.0, guard=watch.check)
        if started is not None:
            return ShellLink(line, nonce, scratch, checksum, line.ring.end)
        await line.write(b"\n")
