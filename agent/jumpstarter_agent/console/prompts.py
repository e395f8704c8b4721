# SPDX-License-Identifier: Apache-2.0
"""Finding out where the device is by pressing Enter, and getting past a login prompt."""

from __future__ import annotations

import asyncio
import re
import secrets

from .ansi import strip_ansi
from .errors import LoginFailed
from .line import INTERRUPT, ConsoleLine, Watch
from .phases import Phase
from .settings import Login

_PRESSES = 3
_CONTINUES = re.compile(rb"(?:^|[\r\n])> ?$")  # the prompt of a shell in which a command has not ended


async def next_prompt(line: ConsoleLine, watch: Watch, since: int, timeout: float) -> Phase | None:
    """The phase of the first prompt that is shown after position ``since``, or None after ``timeout`` seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while line.tracker.prompt_seq <= since:
        watch.check()
        if not await line.ring.changed(deadline - loop.time()):
            return None
    return line.tracker.phase


async def shell_answers(line: ConsoleLine, watch: Watch, timeout: float) -> bool:
    """Whether a POSIX shell reads the console, whatever its prompt looks like.

    The question has arithmetic in it, so that neither its echo nor U-Boot gives the right answer.
    """
    first = line.ring.end
    nonces: list[str] = []
    for share in (0.4, 0.3, 0.3):  # question or answer may be damaged
        nonces.append(secrets.token_hex(3))
        since = line.ring.end
        await line.write(f' echo "@"p"{nonces[-1]}$((3*7))@"\n'.encode())
        # A slow device answers the question before when the next one has been asked already.
        answer = f"@p(?:{'|'.join(nonces)})21@"
        if await line.expect(answer, since=first, timeout=timeout * share, guard=watch.check) is not None:
            return True
        if _CONTINUES.search(strip_ansi(line.ring.since(since))) is not None:
            # A bracket or quote of the question was lost: whatever comes now would belong to it.
            await line.write(INTERRUPT + b"\n")
    return False


def shows_a_reader(said: bytes) -> bool:
    """Whether what came after Enter is of somebody who reads the console: a prompt, or the echo of Enter alone.

    A kernel that starts says whole lines.
    """
    text = strip_ansi(said)
    last = text.rsplit(b"\n", 1)[-1].strip()
    return bool(text) and (not text.strip() or (bool(last) and not last.startswith(b"[")))


async def probe(line: ConsoleLine, watch: Watch, timeout: float) -> Phase:
    """Press Enter and look what answers; the tracker knows the result afterwards.

    A bootloader that counts down is left alone: Enter would stop it.
    """
    tracker = line.tracker
    if tracker.phase is Phase.BOOTLOADER and tracker.prompt_seq < 0:
        return tracker.phase
    before = tracker.phase
    since = line.ring.end
    await line.write(b"\r")
    if (found := await next_prompt(line, watch, since, timeout / 3)) is not None:
        return found
    if before is Phase.KERNEL and not shows_a_reader(line.ring.since(since)):
        return before  # nobody reads yet: what is typed now would only be in the way later
    if await shell_answers(line, watch, timeout / 3):
        tracker.confirm(Phase.SHELL)
        return Phase.SHELL
    if before is Phase.KERNEL:
        return before
    # A program of ours may have been left running by an agent that died: it reads requests, and ^C makes it speak.
    since = line.ring.end
    await line.write(INTERRUPT)
    left = await line.expect(r"@[0-9a-f]{4} I", since=since, timeout=timeout / 3, guard=watch.check)
    if left is not None:
        await line.write(b"quit\n stty sane\n")
        if await shell_answers(line, watch, timeout / 3):
            tracker.confirm(Phase.SHELL)
    elif tracker.prompt_seq <= since:
        tracker.confirm(Phase.SILENT if before in (Phase.SILENT, Phase.SHELL) else before)
    return tracker.phase


async def log_in(line: ConsoleLine, watch: Watch, login: Login, timeout: float) -> None:
    """From a login or password prompt to a shell. Raises LoginFailed, ConsoleTimeout."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    tracker = line.tracker
    if login.password:
        line.transcript.hide(login.password)
    asked = tracker.phase
    if asked not in (Phase.LOGIN, Phase.PASSWORD):
        asked = await probe(line, watch, min(timeout, 3.0))
    names_given = 0
    refused = ""
    while asked is not Phase.SHELL:
        since = line.ring.end
        if asked is Phase.LOGIN:
            if names_given == _PRESSES or (refused and names_given > 1):
                why = refused or "it asks again"
                raise LoginFailed(f"{line.name}: the device refuses to log in {login.user!r}: {why}")
            names_given += 1
            line.transcript.sent(f"login {login.user}")
            await line.write(login.user.encode() + b"\r")
        elif asked is Phase.PASSWORD:
            if login.password is None:
                raise LoginFailed(f"{line.name}: the device asks {login.user!r} for a password and none is configured")
            if names_given == 0:
                # Somebody else's login was half done; an empty password brings the login prompt back.
                await line.write(b"\r")
            else:
                line.transcript.sent("password ********")
                await line.write(login.password.encode() + b"\r")
        left = deadline - loop.time()
        found = await next_prompt(line, watch, since, min(left, 6.0))
        said = line.ring.since(since).decode("utf-8", "replace")
        refused = next((part.strip() for part in said.splitlines() if "incorrect" in part.lower()), "")
        if found is None:
            if loop.time() >= deadline:
                raise line.timeout_error(f"login as {login.user}", timeout)
            if await shell_answers(line, watch, min(2.0, max(deadline - loop.time(), 0.1))):
                tracker.confirm(Phase.SHELL)
                break
            found = tracker.phase if tracker.phase in (Phase.LOGIN, Phase.PASSWORD) else Phase.LOGIN
        if refused:
            raise LoginFailed(f"{line.name}: the device refuses to log in {login.user!r}: {refused}")
        asked = found
