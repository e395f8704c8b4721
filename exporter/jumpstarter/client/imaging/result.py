# SPDX-License-Identifier: Apache-2.0
"""What an image operation tells while it runs and when it is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from jumpstarter.common.exceptions import JumpstarterException
from jumpstarter.common.storage import format_size

__all__ = ["FlashResult", "FlashTarget", "ImagingError", "Meter", "Progress", "ProgressCallback"]


@dataclass(frozen=True, kw_only=True)
class FlashResult:
    """What a flash did (or, in check mode, would do). Sizes in bytes.

    - ``changed``: something was (would be) written. ``reason``: why, or why not.
    - ``target``: its name, None when the exporter does not say.
    - ``size``, ``sha256``: of the image as the target holds it; empty when not known in check mode.
    - ``written_bytes``: really written. ``skipped_bytes``: zeros that needed no write. ``moved_bytes``: sent.
    - ``verified``: read back from the medium and compared. ``repaired_blocks``: blocks of 1 MiB found changed and
      written again. ``seconds``: all of it.
    """

    changed: bool
    target: str | None
    size: int | None = None
    written_bytes: int = 0
    skipped_bytes: int = 0
    moved_bytes: int = 0
    sha256: str = ""
    verified: bool = False
    seconds: float = 0.0
    repaired_blocks: int = 0
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values by field name."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class FlashTarget:
    """A target of a flasher. ``capacity``: bytes, None when it grows with the image. ``problem``: why it cannot be
    flashed now, None when it can."""

    name: str
    kind: str
    path: str
    capacity: int | None
    exists: bool
    default: bool = False
    problem: str | None = None
    code: str | None = None


class ImagingError(JumpstarterException):
    """A flash or dump that did not succeed.

    ``code`` is for programs: refused, too_large, not_found, permission, busy, mismatch, bad_image, broken, io,
    no_space, cancelled, verify_failed, checksum, source, download, exporter_lost. ``state``: what the target holds now.
    ``written``: bytes written before.
    """

    code: str

    def __init__(
        self, message: str, *, code: str, state: str = "nothing was written", written: int = 0, where: str | None = None
    ) -> None:
        place = f" (exporter {where})" if where else ""
        super().__init__(f"{message}{place}; {state}")
        self.plain = message
        self.code = code
        self.state = state
        self.written = written

    def at(self, where: str | None) -> ImagingError:
        """The same error naming the exporter."""
        return ImagingError(self.plain, code=self.code, state=self.state, written=self.written, where=where)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A step of a long operation.

    ``phase``: downloading, hashing, checking (all on this side), writing, repairing, syncing, verifying, comparing (on
    the exporter), reading (a dump). ``done``, ``total``: bytes, total None when not known. ``rate``: bytes per second.
    ``eta``: seconds left, None when not known.
    """

    phase: str
    done: int
    total: int | None
    rate: float
    eta: float | None

    @property
    def text(self) -> str:
        """One line for people."""
        if not self.done and self.total is None:
            return self.phase  # a step that counts no bytes
        amount = format_size(self.done)
        if self.total:
            amount = f"{amount} of {format_size(self.total)} ({100 * self.done // self.total} %)"
        speed = f", {format_size(int(self.rate))}/s" if self.rate else ""
        left = f", {self.eta:.0f} s left" if self.eta is not None and self.eta >= 1 else ""
        return f"{self.phase} {amount}{speed}{left}"


ProgressCallback = Callable[[Progress], None]


@dataclass
class Meter:
    """Turns "so much is done" into `Progress`, at most ``per_second`` times a second for each phase."""

    callback: ProgressCallback | None
    per_second: float = 5.0
    _phase: str = ""
    _started: float = field(default_factory=time.monotonic)
    _told: float = 0.0

    def tell(self, phase: str, done: int, total: int | None) -> None:
        """Report; the first and the last of a phase always get through."""
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._started, self._told = phase, now, 0.0
        if self.callback is None or (now - self._told < 1 / self.per_second and done != total):
            return
        self._told = now
        elapsed = now - self._started
        rate = done / elapsed if elapsed > 0.2 else 0.0
        eta = (total - done) / rate if total is not None and rate else None
        self.callback(Progress(phase=phase, done=done, total=total, rate=rate, eta=eta))
