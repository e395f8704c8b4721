# SPDX-License-Identifier: Apache-2.0
"""Requests to the program that runs on the device (``device_shell.py`` has the language).

Nothing here trusts the line: a request is sent again until it is acknowledged, a reply is asked for again until its
checksum is right, everything else on the console is skipped.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .checksum import fingerprint
from .codec import Codec, codec
from .device_shell import MAX_REQUEST
from .errors import ConsoleError, ConsoleTimeout, DeviceToolMissing
from .line import ConsoleLine, Watch

_ACK_FIRST = 1.5  # seconds without acknowledgement before a request is sent again, until the line is known; doubles
_ACK_LEAST = 0.25
_ACK_MAX = 8.0
_ACK_WITHIN = 25.0  # seconds after which a device that acknowledges nothing is given up
_REFUSALS = 40  # how often a request may arrive damaged
_POLL_AFTER = 2.0  # times _ack_wait: silence before the last reply is asked for again; doubles up to the maximum
_POLL_MAX = 60.0
_GO_ON = b"\x11\n"  # ^Q: a damaged byte may have been a ^S. The program skips the line; what was half sent ends with it
_SILENCE = 25.0  # seconds: how long a device may say nothing in an operation that ends by itself


class ShellGone(ConsoleError):
    """The program on the device ended (somebody killed it, or the device logged us out)."""

    code = "shell_gone"


class NotAnswering(ConsoleTimeout):
    """The program on the device does not react any more."""


class Refused(NotAnswering):
    """A request arrived damaged and cannot simply be sent again."""


@dataclass(slots=True)
class Reply:
    """A verified reply. For commands, ``out``/``err`` are the fingerprints, ``bodies`` what came along."""

    id: int
    value: str
    out: tuple[str, int] | None = None
    err: tuple[str, int] | None = None
    bodies: dict[str, list[bytes]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tools:
    """What the device has: checksum tool, codec, digest tool or none, gzip or not, and the numeric user id."""

    checksum: str
    codec: Codec
    digest: str
    gzip: bool
    uid: int


class ShellLink:
    """One running device program. Not for concurrent use."""

    def __init__(self, line: ConsoleLine, nonce: str, scratch: str, checksum: str, since: int) -> None:
        self.line = line
        self.nonce = nonce
        self.scratch = scratch
        self.tools = Tools(checksum, codec("b64"), "none", False, -1)
        self._pos = since
        self._next_id = 1
        self._round_trip: float | None = None
        self._frame = re.compile(b"@" + nonce.encode() + rb" ([A-Zoe])(?: (.*))?$")
        self._body_into: str | None = None
        self._in_body = False
        line.transcript.is_protocol = self._is_protocol

    def close(self) -> None:
        """Stop treating lines as frames."""
        self.line.transcript.is_protocol = is_preparation
        self.line.tracker.framed = False

    async def hello(self, watch: Watch) -> None:
        """Learn what the device has. Raises DeviceToolMissing when it lacks what nothing replaces."""
        words = (await self.request("_hello", watch=watch)).value.split()
        if len(words) != 5:
            raise DeviceToolMissing(f"{self.line.name}: the device described its tools as {words!r}")
        checksum, encoding, digest, gzip, uid = words
        self.tools = Tools(checksum, codec(encoding), digest, gzip == "gzip", int(uid) if uid.isdigit() else -1)

    def fits(self, code: str) -> bool:
        """Whether ``code`` can travel as a request line."""
        return len(code.encode()) <= MAX_REQUEST and code.isprintable() and code == code.strip()

    async def request(
        self,
        code: str,
        *,
        watch: Watch,
        deadline: float | None = None,
        ends_by_itself: bool = True,
        lines: Sequence[bytes] = (),
        on_line: Callable[[bytes, re.Match[bytes] | None], None] | None = None,
    ) -> Reply:
        """Run ``code`` on the device exactly once and return its reply.

        ``lines`` follow the request (the code must read them). ``on_line`` sees every other line with its frame
        match. ``deadline``: loop time; TimeoutError is raised when it passes. A code that does not end by itself
        (a command of the user) may be silent for as long as it likes.
        """
        request_id, frame = self.frame(code, lines)
        await self.line.write(frame)
        return await self.reply(
            request_id,
            frame,
            watch=watch,
            deadline=deadline,
            ends_by_itself=ends_by_itself,
            on_line=on_line,
        )

    def frame(self, code: str, lines: Sequence[bytes] = ()) -> tuple[int, bytes]:
        """A new request as bytes, with its number."""
        request_id = self._next_id
        self._next_id += 1
        body = f"{request_id} {code}".encode()
        head = f"{request_id} {fingerprint(body, self.tools.checksum)} ".encode()
        tail = b"".join(line + b"\n" for line in lines)
        return request_id, head + code.encode() + b"\n" + tail

    async def reply(
        self,
        request_id: int,
        frame: bytes,
        *,
        watch: Watch,
        deadline: float | None = None,
        ends_by_itself: bool = True,
        on_line: Callable[[bytes, re.Match[bytes] | None], None] | None = None,
        patience: float | None = None,
    ) -> Reply:
        """Wait for the reply to a request that was sent as ``frame``.

        ``patience``: for a request with data behind it: seconds until the acknowledgement is missed. ``frame`` is
        only what makes the device go on then; Refused is raised when the request itself arrived damaged.
        """
        loop = asyncio.get_running_loop()
        acked = False
        wait = self._ack_wait() if patience is None else patience
        poll = max(self._ack_wait() * _POLL_AFTER, patience or 0.0)
        tries = refusals = 0
        reply: Reply | None = None
        began = heard = loop.time()
        again_at = heard + wait

        async def again() -> None:
            nonlocal tries, wait, again_at
            tries += 1
            if not acked and loop.time() - began > _ACK_WITHIN:
                raise NotAnswering(
                    f"{self.line.name}: the shell on the device does not answer (phase {self.line.tracker.phase})"
                )
            if acked:
                await self.line.write(_GO_ON + b"?\n")
            else:
                # What has data behind it cannot be sent again; the answer to ? tells whether it was seen at all.
                await self.line.write(_GO_ON + frame + (b"" if patience is None else b"?\n"))
            wait = min(wait * 2, _POLL_MAX if acked else _ACK_MAX)
            again_at = loop.time() + wait

        while True:
            now = loop.time()
            limit = again_at if deadline is None else min(again_at, deadline)
            line = await self._next_line(watch, limit)
            if line is None:
                now = loop.time()
                if deadline is not None and now >= deadline:
                    raise TimeoutError
                if ends_by_itself and acked and now - heard > _SILENCE:
                    raise NotAnswering(
                        f"{self.line.name}: the shell on the device fell silent for {_SILENCE:g} s in an operation"
                    )
                reply = None
                await again()
                continue
            match = self._frame.search(line)
            if match is None:
                if reply is not None and self._body_into is not None:
                    reply.bodies[self._body_into].append(line)
                    again_at = loop.time() + poll
                elif on_line is not None:
                    on_line(line, None)
                    if ends_by_itself and acked:
                        again_at = max(again_at, loop.time() + poll)
                continue
            heard = loop.time()
            kind, rest = match.group(1), match.group(2) or b""
            if kind == b"A" and rest == b"%d" % request_id:
                if not acked and not tries and patience is None:
                    self._timed(heard - began)
                acked, wait = True, poll
                again_at = heard + wait
            elif kind == b"N" and not acked:
                # The number in a refusal may itself be the damaged part: any refusal means ours, there is no other.
                refusals += 1
                if patience is not None:
                    raise Refused(f"{self.line.name}: a request arrived damaged")
                if refusals > _REFUSALS:
                    raise NotAnswering(f"{self.line.name}: no request reaches the device undamaged")
                await self.line.write(b"\n" + frame)
                again_at = heard + wait
            elif kind == b"R":
                found = self._parse_reply(rest)
                if found is None:
                    await self.line.write(b"?\n")
                    again_at = heard + wait
                elif found.id < request_id:
                    if not acked and tries and patience is not None:
                        raise Refused(f"{self.line.name}: a request was not seen")
                    if not acked and tries:
                        await again()
                elif found.id >= request_id:
                    reply, self._body_into = found, None
                    if found.out is None:
                        return found
                    again_at = heard + poll
            elif kind in (b"o", b"e") and reply is not None:
                self._body_into = kind.decode()
                reply.bodies[self._body_into] = []
            elif kind == b"Z" and reply is not None and rest == b"%d" % reply.id:
                self._body_into = None
                return reply
            elif kind == b"Z" and reply is None and rest == b"%d" % request_id:
                await self.line.write(b"?\n")
                again_at = heard + wait
            elif kind == b"X":
                raise ShellGone(f"{self.line.name}: the shell on the device ended during the operation")
            elif on_line is not None:
                acked = acked or kind == b"C"
                on_line(line, match)
                if ends_by_itself and acked:
                    again_at = heard + poll

    async def interrupt(self) -> bool:
        """Send ^C until the program is back at its own prompt; False when it does not come back."""
        watch = self.line.watch("the resynchronisation of the shell")
        loop = asyncio.get_running_loop()
        for key in (b"\x03", b"\x03", b"\x1c"):
            self._pos = self.line.ring.end
            await self.line.write(b"\x11" + key + b"\n?\n")
            deadline = loop.time() + 2.0
            while (line := await self._next_line(watch, deadline)) is not None:
                match = self._frame.search(line)
                if match is None:
                    continue
                if match.group(1) == b"X":
                    return False
                if match.group(1) == b"R" and (last := self._parse_reply(match.group(2) or b"")) is not None:
                    self._next_id = max(self._next_id, last.id + 1)
                    return True
        return False

    def skip(self) -> None:
        """Ignore everything said so far."""
        self._pos = self.line.ring.end

    def _ack_wait(self) -> float:
        return _ACK_FIRST if self._round_trip is None else min(max(10 * self._round_trip, _ACK_LEAST), _ACK_FIRST)

    def _timed(self, seconds: float) -> None:
        self._round_trip = seconds if self._round_trip is None else 0.7 * self._round_trip + 0.3 * seconds

    async def _next_line(self, watch: Watch, deadline: float) -> bytes | None:
        ring = self.line.ring
        loop = asyncio.get_running_loop()
        while (found := ring.line(self._pos)) is None:
            watch.check()
            if not await ring.changed(deadline - loop.time()):
                return None
        line, self._pos = found
        return line

    def _parse_reply(self, rest: bytes) -> Reply | None:
        words = rest.split(b" ")
        # "id FINGERPRINT value" or "id FINGERPRINT out size err size rc": the fingerprint tells which.
        for head in (6, 2):
            if len(words) < head:
                continue
            value = b" ".join(words[head:])
            said = words[0] + b" " + value + b"\n"
            if fingerprint(said, self.tools.checksum).encode() != words[1]:
                continue
            try:
                reply = Reply(int(words[0]), value.decode("utf-8", "replace"))
                if head == 6:
                    reply.out = (words[2].decode(), int(words[3]))
                    reply.err = (words[4].decode(), int(words[5]))
            except ValueError:
                # The sizes are not covered: ask again.
                return None
            return reply
        return None

    def _is_protocol(self, line: bytes) -> bool:
        frame = self._frame.search(line)
        if frame is not None:
            self._in_body = frame.group(1) in (b"o", b"e")
            return True
        encoded = _ENCODED.match(line)
        return encoded is not None and (self._in_body or encoded.group(1) is not None) or is_preparation(line)


def is_preparation(line: bytes) -> bool:
    """Whether a line of the device belongs to our questions before the device program runs."""
    return _PREPARATION.search(line) is not None


_PREPARATION = re.compile(rb'"@"[a-z]?"|@[pdynkzs][0-9a-f]{4,6}|/\.jl-[0-9a-f]{4}')
_ENCODED = re.compile(rb"(\d+:)?[A-Za-z0-9+/]{2,}={0,2}$")
