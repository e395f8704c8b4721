# SPDX-License-Identifier: Apache-2.0
"""The console log for people: one timestamped, printable line per line of the device.

A line reads ``2026-11-22T00:05:01.123456Z +12.345678 < text``; the second column is seconds since the transcript
began. ``<`` is what the device said, ``>`` what was sent to it, ``#`` a note of ours. Bytes that are not printable
are escaped, so that nothing a device says can garble the terminal of whoever reads the file. Registered secrets
never reach the file.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from .ansi import apply_backspaces, readable, strip_ansi

_PARTIAL_AFTER = 1.0  # seconds a line may stay unfinished (a prompt) before it is written as it is
_LONGEST = 16384  # bytes; longer lines are broken, a device that never sends a line end must not eat memory


class Transcript:
    """Writes the log of one console; ``path`` None keeps only the last lines in memory."""

    def __init__(self, path: Path | None, *, keep: int = 400) -> None:
        self.path = path
        self._file: IO[str] | None = None
        self._began = time.monotonic()
        self._pending = bytearray()
        self._pending_written = 0
        self._timer: asyncio.TimerHandle | None = None
        self._last = self._began
        self._secrets: set[str] = set()
        self._recent: deque[str] = deque(maxlen=keep)
        self.is_protocol: Callable[[bytes], bool] | None = None
        """While set: device lines it accepts are frames of ours, counted instead of written."""
        self.protocol_lines = 0
        self.lines_said = 0
        """How many lines :meth:`tail` has been told of."""

    def open(self) -> None:
        """Open the file for appending (created readable by its owner only)."""
        if self.path is not None and self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8", buffering=1)

    def close(self) -> None:
        """Write what is pending and close the file."""
        self._flush_partial()
        if self._file is not None:
            self._file.close()
            self._file = None

    def hide(self, secret: str) -> None:
        """Never write ``secret``: a device may echo a password at the wrong moment."""
        if secret:
            self._secrets.add(secret)

    def received(self, data: bytes) -> None:
        """Record what the device sent."""
        self._pending += data
        if b"\n" in data or len(self._pending) > _LONGEST:
            *lines, rest = self._pending.split(b"\n")
            if len(rest) > _LONGEST:
                lines.append(rest)
                rest = bytearray()
            for line in lines:
                self._device_line(bytes(line[self._pending_written :]))
                self._pending_written = 0
            self._pending = bytearray(rest)
        self._last = time.monotonic()
        if self._timer is None and len(self._pending) > self._pending_written:
            self._timer = asyncio.get_running_loop().call_later(_PARTIAL_AFTER, self._flush_if_quiet)

    def sent(self, text: str) -> None:
        """Record, in words, what was sent to the device."""
        self._write(">", text)

    def note(self, text: str) -> None:
        """Record something that happened."""
        self._write("#", text)

    def tail(self, lines: int = 20) -> list[str]:
        """The last lines the device said, the unfinished one included, without timestamps."""
        recent = list(self._recent)
        partial = self._shown(bytes(self._pending[self._pending_written :]))
        if partial:
            recent.append(partial)
        return recent[-lines:] if lines > 0 else []

    def forget(self, since: int) -> None:
        """Leave all after the first ``since`` lines out of :meth:`tail`: echo of ours. The file keeps them."""
        for _ in range(min(self.lines_said - since, len(self._recent))):
            self._recent.pop()
        self.lines_said = since

    def _device_line(self, raw: bytes) -> None:
        line = raw.rstrip(b"\r")
        if self.is_protocol is not None and self.is_protocol(line):
            self.protocol_lines += 1
            return
        shown = self._shown(line)
        if shown:
            self._recent.append(shown)
            self.lines_said += 1
        self._write("<", shown)

    def _flush_if_quiet(self) -> None:
        self._timer = None
        quiet = time.monotonic() - self._last
        if quiet >= _PARTIAL_AFTER:
            self._flush_partial()
        elif len(self._pending) > self._pending_written:
            self._timer = asyncio.get_running_loop().call_later(_PARTIAL_AFTER - quiet, self._flush_if_quiet)

    def _flush_partial(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        partial = bytes(self._pending[self._pending_written :])
        if partial:
            self._pending_written = len(self._pending)
            self._device_line(partial)

    def _shown(self, line: bytes) -> str:
        line = apply_backspaces(strip_ansi(line)).rstrip(b"\r")
        return self._hidden(readable(line.rsplit(b"\r", 1)[-1]))

    def _hidden(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "********")
        return text

    def _write(self, mark: str, text: str) -> None:
        if self._file is not None:
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            elapsed = time.monotonic() - self._began
            self._file.write(f"{now} +{elapsed:.6f} {mark} {self._hidden(text)}\n")
