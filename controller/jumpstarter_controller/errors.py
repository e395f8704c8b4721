# SPDX-License-Identifier: Apache-2.0
"""The one error that a caller is meant to see."""

from __future__ import annotations

import grpc

__all__ = ["Refused", "failed_precondition", "invalid", "not_found", "one_line", "permission_denied"]

#: Characters of a line: a status with more than 8 KiB does not reach its caller.
_LONGEST = 1000


class Refused(Exception):
    """A request that is turned down: a gRPC status code and one line for the caller."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def invalid(message: str) -> Refused:
    """INVALID_ARGUMENT: the request can never be granted as it stands."""
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> Refused:
    """NOT_FOUND."""
    return Refused(grpc.StatusCode.NOT_FOUND, message)


def permission_denied(message: str) -> Refused:
    """PERMISSION_DENIED. Existing clients look for the words "permission denied"."""
    return Refused(grpc.StatusCode.PERMISSION_DENIED, message)


def failed_precondition(message: str) -> Refused:
    """FAILED_PRECONDITION: not now."""
    return Refused(grpc.StatusCode.FAILED_PRECONDITION, message)


def one_line(text: str, longest: int = _LONGEST) -> str:
    """``text``, which repeats what a caller sent, without what breaks a line or a terminal, and not too long."""
    shown = "".join(c if c.isprintable() else " " for c in text[:longest])
    return shown if len(text) <= longest else f"{shown[: longest - 3]}..."
