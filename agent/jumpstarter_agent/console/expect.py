# SPDX-License-Identifier: Apache-2.0
"""Waiting for text: regular expressions over the bytes of a console, from a position, until a deadline."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .errors import ConsoleError
from .ring import Ring

LONGEST_MATCH = 8192
"""Bytes: a match may not be longer than this (what lies before it may be)."""

Pattern = str | bytes | re.Pattern[bytes]


@dataclass(frozen=True, slots=True)
class Match:
    """What was found. ``index`` tells which pattern matched; ``seq``/``end_seq`` are the positions of the match."""

    index: int
    before: bytes
    match: bytes
    groups: tuple[bytes | None, ...]
    groupdict: dict[str, bytes | None]
    seq: int
    end_seq: int
    seconds: float


def compile_patterns(patterns: Pattern | Sequence[Pattern]) -> list[re.Pattern[bytes]]:
    """The patterns as compiled byte expressions. Raises ConsoleError naming the one that does not compile."""
    several: Sequence[Pattern] = [patterns] if isinstance(patterns, str | bytes | re.Pattern) else patterns
    compiled = []
    for pattern in several:
        if isinstance(pattern, re.Pattern):
            compiled.append(pattern)
            continue
        raw = pattern.encode() if isinstance(pattern, str) else pattern
        try:
            compiled.append(re.compile(raw, re.MULTILINE))
        except re.error as error:
            raise ConsoleError(f"pattern {pattern!r} is no regular expression: {error}") from error
    if not compiled:
        raise ConsoleError("no pattern to wait for was given")
    return compiled


async def expect(
    ring: Ring,
    patterns: Sequence[re.Pattern[bytes]],
    *,
    since: int,
    timeout: float,
    guard: Callable[[], None],
) -> Match | None:
    """The earliest match from position ``since`` on, or None after ``timeout`` seconds.

    ``guard`` is called whenever nothing matched; it raises when waiting on makes no sense.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    since = max(since, ring.start)
    looked = since
    while True:
        window = max(since, looked - LONGEST_MATCH, ring.start)
        # One byte of context, so that ^ does not match at the edge of the window.
        context = 1 if window > max(since, ring.start) else 0
        data = ring.since(window - context)
        looked = ring.end
        found = [(m.start(), i, m) for i, p in enumerate(patterns) if (m := p.search(data, context)) is not None]
        if found:
            _, index, match = min(found, key=lambda item: item[:2])
            origin = window - context
            before = ring.since(since)[: origin + match.start() - since]
            return Match(
                index,
                before,
                match.group(),
                match.groups(),
                match.groupdict(),
                origin + match.start(),
                origin + match.end(),
                loop.time() - began,
            )
        guard()
        if ring.end == looked and not await ring.changed(timeout - (loop.time() - began)):
            return None
