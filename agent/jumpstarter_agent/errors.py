# SPDX-License-Identifier: Apache-2.0
"""The one error type that crosses the socket, and how everything else becomes it."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["AgentError", "as_agent_error", "as_controller_error"]

_BY_GRPC_CODE = {
    "NOT_FOUND": "not_found",
    "INVALID_ARGUMENT": "invalid",
    "OUT_OF_RANGE": "invalid",
    "FAILED_PRECONDITION": "refused",
    "PERMISSION_DENIED": "refused",
    "UNAUTHENTICATED": "refused",
    "ALREADY_EXISTS": "refused",
    "DEADLINE_EXCEEDED": "timeout",
    "UNIMPLEMENTED": "not_found",
    # Said by the driver itself (a port that is not there); an exporter that is gone is a ConnectionError.
    "UNAVAILABLE": "unavailable",
    "CANCELLED": "canceled",
    "ABORTED": "busy",
    "RESOURCE_EXHAUSTED": "busy",
}


class AgentError(Exception):
    """What a task is told when its request failed.

    code: one word a play can branch on ("busy", "timeout", ...). message: one line for people. data: details for
    programs (JSON types only).
    """

    def __init__(self, code: str, message: str, data: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = dict(data or {})

    def prefixed(self, *words: str) -> AgentError:
        """The same error with "word: word: " before the message, leaving out words it already starts with."""
        prefix = "".join(f"{word}: " for word in words if word)
        if not prefix or self.message.startswith(prefix):
            return self
        return AgentError(self.code, prefix + self.message, self.data)

    def as_dict(self) -> dict[str, Any]:
        """The object that goes into the ``error`` frame."""
        return {"code": self.code, "message": self.message, "data": self.data}


def as_agent_error(error: BaseException) -> AgentError:
    """Turn any exception of an operation into an `AgentError`; what nobody foresaw becomes code "internal"."""
    # Imported here: the server refuses hostile clients and dead paths without ever needing gRPC.
    from jumpstarter.common import exceptions as lab

    if isinstance(error, AgentError):
        return error
    own = _own_code(error)
    if own is not None:
        return own
    if isinstance(error, asyncio.CancelledError):
        return AgentError("canceled", "canceled")
    if isinstance(error, lab.FileNotFoundError):
        return AgentError("not_found", one_line(error))
    if isinstance(error, lab.DriverNotFound):
        return AgentError("not_found", one_line(error), {"driver": error.path, "drivers": error.paths})
    if isinstance(error, lab.AuthenticationError):
        return AgentError("refused", one_line(error))
    if isinstance(error, lab.ControllerError):
        data = {"grpc_code": error.code, "details": error.details}
        return AgentError(_BY_GRPC_CODE.get(error.code, "busy"), one_line(error), data)
    if isinstance(error, (lab.ExporterUnreachableError, lab.ConnectionError)):
        return AgentError("exporter_lost", one_line(error))
    if isinstance(error, lab.DriverError):
        data = {"driver": error.driver, "method": error.method, "grpc_code": error.code, "details": error.details}
        return AgentError(_driver_code(error), one_line(error), data)
    if isinstance(error, (lab.ConfigurationError, lab.ArgumentError, lab.MissingDriverError)):
        return AgentError("invalid", one_line(error))
    if isinstance(error, lab.JumpstarterException):
        return AgentError("driver_error", one_line(error))
    if isinstance(error, TimeoutError):
        return AgentError("timeout", one_line(error) if str(error) else "timed out")
    if isinstance(error, FileNotFoundError):
        return AgentError("not_found", _os_line(error))
    if isinstance(error, PermissionError):
        return AgentError("refused", _os_line(error))
    if isinstance(error, OSError):
        return AgentError("io", _os_line(error))
    return AgentError("internal", f"{type(error).__name__}: {one_line(error)} (a bug in the agent; see its log)")


def as_controller_error(error: BaseException) -> AgentError:
    """The same for what was asked of a controller: when that cannot be reached, no exporter is lost."""
    known = as_agent_error(error)
    return AgentError("controller_lost", known.message, known.data) if known.code == "exporter_lost" else known


def one_line(error: BaseException) -> str:
    """The message of an exception on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _own_code(error: BaseException) -> AgentError | None:
    """Errors of the console machinery and of imaging bring their code and details along."""
    from jumpstarter.client.imaging import ImagingError

    from .console.errors import ConsoleError

    if isinstance(error, ConsoleError):
        return AgentError(error.code, one_line(error), {**error.data, "retriable": error.retriable})
    if isinstance(error, ImagingError):
        return AgentError(
            error.code or "driver_error", one_line(error), {"target_state": error.state, "written_bytes": error.written}
        )
    return None


def _driver_code(error: Any) -> str:
    from jumpstarter.common import exceptions as lab

    if isinstance(error, lab.DriverInvalidArgument):
        return "invalid"
    if isinstance(error, lab.DriverMethodNotImplemented):
        return "not_found"
    return _BY_GRPC_CODE.get(error.code, "driver_error")


def _os_line(error: OSError) -> str:
    names = [str(name) for name in (error.filename, error.filename2) if name]
    reason = error.strerror or str(error) or type(error).__name__
    return f"{' -> '.join(names)}: {reason}" if names else one_line(error)
