# SPDX-License-Identifier: Apache-2.0
"""What a storage operation may fail with: always one line, and always with the state the target is in."""

from __future__ import annotations

from typing import Any, Literal

Code = Literal[
    "refused",
    "too_large",
    "not_found",
    "permission",
    "busy",
    "mismatch",
    "bad_image",
    "broken",
    "io",
    "no_space",
    "cancelled",
    "verify_failed",
]

NOTHING_WRITTEN = "nothing was written"


class StorageFault(Exception):
    """Base: ``message`` says what is wrong, ``state`` how the target was left, ``written`` bytes written before.

    ``code`` is for programs. The text is ``message; state``.
    """

    def __init__(self, message: str, *, code: Code, state: str = NOTHING_WRITTEN, written: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.code: Code = code
        self.state = state
        self.written = written

    def __str__(self) -> str:
        return f"{self.message}; {self.state}"

    def as_event(self) -> dict[str, Any]:
        """The last event of a streamed operation that failed."""
        return {
            "event": "error", "code": self.code, "message": self.message, "state": self.state, "written": self.written
        }  # fmt: skip


class StorageRefused(StorageFault, ValueError):
    """The request cannot be met: nothing was written."""


class StorageFailed(StorageFault, OSError):
    """The operation broke off: ``state`` says what the target holds now."""


class TransferBroken(Exception):
    """The client stopped sending before the end of the image."""


class JobCancelled(Exception):
    """The caller went away or gave up."""


def incomplete(written: int) -> str:
    """State of a target whose flash broke off after ``written`` bytes."""
    return f"{written} bytes written, target is incomplete"
