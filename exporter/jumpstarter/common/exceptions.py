# SPDX-License-Identifier: Apache-2.0
"""Every error this package raises on purpose.

One line each: what went wrong, where, and what to do about it. Programs catch `JumpstarterException` for "the lab
said no" and the subclasses for the cases they can handle.
"""

from __future__ import annotations

import builtins
from typing import Any

__all__ = [
    "ArgumentError",
    "AuthenticationError",
    "ConfigurationError",
    "ConnectionError",
    "ControllerError",
    "DriverError",
    "DriverInvalidArgument",
    "DriverMethodNotImplemented",
    "DriverNotFound",
    "EnvironmentVariableNotSetError",
    "ExporterGoneError",
    "ExporterNotReady",
    "ExporterOfflineError",
    "ExporterRefusedError",
    "ExporterUnreachableError",
    "FileNotFoundError",
    "JumpstarterException",
    "LeaseError",
    "MissingDriverError",
    "ReauthenticationFailed",
]


class JumpstarterException(Exception):
    """Base of all errors of this package.

    `message` is the line a user reads. `str()` appends the cause (``raise ... from cause``) unless the message
    already contains it. A client configuration may ride along (`set_config`), so that whoever handles an expired
    token knows which identity to log in again.
    """

    #: Name of the gRPC status that the peer answered with ("NOT_FOUND"), where one did.
    code: str | None = None

    def __init__(self, message: str = "", *args: object) -> None:
        super().__init__(message, *args)
        self.message = message
        self._config: Any = None

    def __str__(self) -> str:
        cause = self.__cause__
        if cause is None or cause is self:  # `raise error from error` is legal
            return self.message
        text = str(cause) or type(cause).__name__
        return self.message if text in self.message else f"{self.message} (Caused by: {text})"

    def set_config(self, config: Any) -> None:
        """Remember the client configuration that was in use when this happened."""
        self._config = config

    def get_config(self) -> Any:
        """The client configuration given to `set_config`, or None."""
        return self._config

    def print(self, message: str | None = None) -> None:
        """Write the error to stderr as one red line (plain when stderr is no terminal), after `message` if given."""
        import click

        click.echo(click.style(f"{message}: {self}" if message else str(self), fg="red"), err=True)


class ConnectionError(JumpstarterException):
    """The peer (exporter, controller, router) cannot be reached or went away."""


class ExporterOfflineError(ConnectionError):
    """The exporter is known but not serving, or its beforeLease hook failed. code: name of its status."""


class ExporterUnreachableError(JumpstarterException):
    """The exporter's endpoint does not answer. Not a `ConnectionError`: the lease may be fine, a retry may help."""


class ExporterRefusedError(ConnectionError):
    """The exporter answers, and does not let us in: the passphrase is missing or wrong."""


class ReauthenticationFailed(JumpstarterException):
    """The token is no longer valid and a new one could not be obtained."""


class AuthenticationError(ConnectionError, ReauthenticationFailed):
    """The controller does not accept our token: it is missing, expired, revoked, or from somebody else."""


class ControllerError(JumpstarterException):
    """The controller answered, and refused what was asked for.

    code: name of the gRPC status ("NOT_FOUND"). details: the controller's own message, without what we added.
    """

    code: str

    def __init__(self, message: str = "", *args: object, code: str = "", details: str = "") -> None:
        super().__init__(message, *args)
        self.code = code
        self.details = details or message


class ConfigurationError(JumpstarterException):
    """A configuration file, variable or option is wrong. Names the file and the field."""


class ArgumentError(JumpstarterException):
    """A function of this package was called with arguments that make no sense together."""


class FileNotFoundError(JumpstarterException, builtins.FileNotFoundError):
    """A file of this package (a configuration, mostly) does not exist."""


class EnvironmentVariableNotSetError(JumpstarterException):
    """A variable such as JUMPSTARTER_HOST is missing: the code runs outside a `jmp shell` or a lease."""


class MissingDriverError(JumpstarterException):
    """A driver or client class cannot be imported here: not installed, or not in the allow list.

    `class_path` is the dotted path that was asked for.
    """

    def __init__(self, message: str = "", class_path: str = "") -> None:
        super().__init__(message)
        self.class_path = class_path


class LeaseError(ControllerError):
    """A lease cannot be had: unsatisfiable, invalid, owned by somebody else, ended, or not granted in time.

    state: of the lease ("pending", "ended", "unsatisfiable", "invalid"), "" when that is not the reason.
    """

    def __init__(self, message: str = "", *args: object, code: str = "", details: str = "", state: str = "") -> None:
        super().__init__(message, *args, code=code, details=details)
        self.state = state


class DriverNotFound(JumpstarterException):
    """No driver at this path.

    `path` is what was asked for, `paths` what the exporter has.
    """

    def __init__(self, message: str = "", *, path: str = "", paths: list[str] | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.paths = list(paths or [])


class DriverError(JumpstarterException):
    """A driver call failed.

    code: name of the gRPC status ("INTERNAL"), "" when unknown. driver: path of the driver ("qemu.power"), "" for the
    root. method: exported method that was called. details: the driver's own message, without what we added.
    """

    code: str

    def __init__(
        self,
        message: str = "",
        *args: object,
        code: str = "",
        driver: str = "",
        method: str = "",
        details: str = "",
    ) -> None:
        super().__init__(message, *args)
        self.code = code
        self.driver = driver
        self.method = method
        self.details = details or message


class DriverMethodNotImplemented(DriverError, NotImplementedError):
    """The driver has no such method, or does not implement it."""


class DriverInvalidArgument(DriverError, ValueError):
    """The driver refused an argument."""


class ExporterNotReady(DriverError):
    """The exporter takes no driver calls in its present status (a hook runs, the lease ended)."""


class ExporterGoneError(DriverError, ConnectionError):
    """The exporter went away during a call: its process ended, or the connection to it broke."""
