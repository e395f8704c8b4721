# SPDX-License-Identifier: Apache-2.0
"""Commands over a prepared shell: exact output, exact status, whatever else is on the line."""

from __future__ import annotations

import asyncio
import shlex
from dataclasses import dataclass

from .checksum import fingerprint
from .errors import ConsoleError, ConsoleLost, ExecTimeout, TransferRefused
from .line import ConsoleLine, Watch
from .link import NotAnswering, Reply, ShellLink
from .receive import Receiver
from .send import Sender

_ARGUMENT_LIMIT = 100_000  # bytes; Linux takes 128 KiB in one argument, a longer command runs from its file


@dataclass(frozen=True, slots=True)
class ExecResult:
    """Exit status (128 + signal number when a signal ended it), exact output, seconds on the console."""

    rc: int
    stdout: bytes
    stderr: bytes
    seconds: float


async def run(
    link: ShellLink,
    cmd: str,
    *,
    in_data: bytes = b"",
    timeout: float | None = None,
    executable: str = "sh",
    max_output: int = 16 << 20,
) -> ExecResult:
    """Run ``cmd`` by ``executable -c`` on the device. Its standard input is ``in_data``, or empty.

    Raises ExecTimeout with what it had written when ``timeout`` seconds pass; the command got ^C then.
    """
    line = link.line
    loop = asyncio.get_running_loop()
    began = loop.time()
    deadline = None if timeout is None else began + timeout
    shown = cmd if len(cmd) <= 60 else cmd[:57] + "..."
    watch = line.watch(f"the command {shown!r}")
    line.transcript.sent(f"$ {cmd}" if len(cmd) <= 400 else f"$ {cmd[:400]}... ({len(cmd)} characters)")
    if "\0" in cmd:
        raise ConsoleError(f"{line.name}: a command cannot contain NUL bytes")
    stdin = "/dev/null"
    if in_data:
        stdin = f"{link.scratch}/i"
        await Sender(link, watch).file(in_data, stdin)
    code = f"_run {shlex.quote(cmd)} {shlex.quote(stdin)} {shlex.quote(executable)}"
    if not link.fits(code):
        await Sender(link, watch).file(cmd.encode("utf-8", "surrogateescape"), f"{link.scratch}/c")
        if len(cmd.encode("utf-8", "surrogateescape")) <= _ARGUMENT_LIMIT:
            code = f'_run "$(cat $_T/c)" {shlex.quote(stdin)} {shlex.quote(executable)}'
        else:
            code = f"_runf x {shlex.quote(stdin)} {shlex.quote(executable)}"
    request_id, frame = link.frame(code)
    try:
        await line.write(frame)
        try:
            reply = await link.reply(request_id, frame, watch=watch, deadline=deadline, ends_by_itself=False)
        except TimeoutError:
            raise await _timed_out(link, watch, request_id, shown, timeout or 0.0, max_output) from None
    except asyncio.CancelledError:
        await _stop(line)
        raise
    rc = int(reply.value)
    stdout, stderr = await _outputs(link, watch, reply, shown, max_output)
    seconds = loop.time() - began
    line.transcript.note(f"rc {rc}, {len(stdout)} B out, {len(stderr)} B err, {seconds:.3f} s")
    return ExecResult(rc, stdout, stderr, seconds)


async def _stop(line: ConsoleLine) -> None:
    """The caller went away: do not leave its command running."""
    try:
        await asyncio.wait_for(line.write(b"\x03"), 1.0)
    except (ConsoleLost, TimeoutError):
        line.transcript.note("could not interrupt the cancelled command")


async def _timed_out(
    link: ShellLink, watch: Watch, request_id: int, shown: str, timeout: float, max_output: int
) -> ExecTimeout:
    line = link.line
    message = f"{line.name}: the command {shown!r} did not end within {timeout:g} s"
    try:
        if not await link.interrupt():
            return ExecTimeout(f"{message} and ignores ^C; it may still run on the device")
        await line.write(b"?\n")
        reply = await link.reply(request_id, b"?\n", watch=watch)
        stdout, stderr = await _outputs(link, watch, reply, shown, max_output)
    except (NotAnswering, TransferRefused) as error:
        return ExecTimeout(f"{message}; its output until then is not available: {error}")
    return ExecTimeout(
        f"{message} and was interrupted; until then it wrote {len(stdout)} B and {len(stderr)} B of errors",
        stdout=stdout,
        stderr=stderr,
    )


async def _outputs(link: ShellLink, watch: Watch, reply: Reply, shown: str, max_output: int) -> tuple[bytes, bytes]:
    found: list[bytes] = []
    for letter, expected in (("o", reply.out), ("e", reply.err)):
        if expected is None:
            raise ConsoleError(f"{link.line.name}: the device answered with an internal reply to {shown!r}")
        data = _inline(link, reply, letter, expected)
        if data is None:
            original = f"$_T/{letter}.{reply.id}"
            size = int((await link.request(f"_v=$(($(wc -c <{original})))", watch=watch)).value)
            if size > max_output:
                name = {"o": "output", "e": "error output"}[letter]
                raise TransferRefused(
                    f"{link.line.name}: the {name} of {shown!r} is {size} bytes, more than the {max_output} allowed;"
                    " write it to a file on the device and fetch what is needed"
                )
            # A copy: something left in the background may go on writing to the original.
            await link.request(f"cat {original} >$_T/s; _v=ok", watch=watch)
            data = await Receiver(link, watch).file(f"{link.scratch}/s", compress=True)
            await link.request(": >$_T/s; _v=ok", watch=watch)
        found.append(data)
    return found[0], found[1]


def _inline(link: ShellLink, reply: Reply, letter: str, expected: tuple[str, int]) -> bytes | None:
    pieces = [link.tools.codec.decode(line) for line in reply.bodies.get(letter, [])]
    data = b"".join(piece for piece in pieces if piece)
    return data if fingerprint(data, link.tools.checksum) == expected[0] else None
