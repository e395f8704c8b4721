# SPDX-License-Identifier: Apache-2.0
"""What can go wrong on a console, one class per thing a caller may want to react to.

Every message is one line that says what was tried, on which console and what to do about it. ``code`` is the
short name the agent sends to a play; ``data`` holds the details in a JSON-able form.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ConsoleError(Exception):
    """Base of all console errors; ``data`` is JSON-able and safe to show."""

    code: ClassVar[str] = "console"
    retriable: ClassVar[bool] = False

    def __init__(self, message: str, **data: Any) -> None:
        super().__init__(message)
        self.data: dict[str, Any] = data


class WrongPhase(ConsoleError):
    """The device is not where the operation needs it (a shell command while U-Boot runs); later it may be."""

    code = "wrong_phase"
    retriable = True

    def __init__(self, what: str, *, current: str, wanted: str, hint: str) -> None:
        super().__init__(
            f"{what} needs the {wanted} phase, the console is in phase {current}; {hint}",
            current=current,
            wanted=wanted,
            hint=hint,
        )
        self.current = current
        self.wanted = wanted
        self.hint = hint


class ConsoleTimeout(ConsoleError):
    """Nothing that was waited for came in time; the message quotes the phase and the last lines."""

    code = "timeout"


class ExecTimeout(ConsoleTimeout):
    """A command ran longer than allowed; ``stdout`` and ``stderr`` hold what it had written until then."""

    def __init__(self, message: str, *, stdout: bytes = b"", stderr: bytes = b"", **data: Any) -> None:
        super().__init__(message, **data)
        self.stdout = stdout
        self.stderr = stderr


class KernelPanic(ConsoleError):
    """The kernel (or the bootloader) died while an operation was waiting; ``line`` is what it said."""

    code = "panic"

    def __init__(self, message: str, *, line: str, **data: Any) -> None:
        super().__init__(message, line=line, **data)
        self.line = line


class BoardRestarted(ConsoleError):
    """A new boot began under a running operation."""

    code = "restarted"


class ConsoleLost(ConsoleError):
    """The byte stream to the console ended: exporter gone, port gone, emulator dead."""

    code = "exporter_lost"


class BoardGone(ConsoleLost):
    """The board was switched off while an operation was waiting for it."""

    code = "power_lost"


class LoginFailed(ConsoleError):
    """The device refused the user name or the password, or asks for one that is not configured."""

    code = "login_failed"


class TransferRefused(ConsoleError):
    """A transfer that would take absurdly long over a console, and was not allowed explicitly."""

    code = "refused"


class VerifyFailed(ConsoleError):
    """What arrived is not what was sent, after all retries."""

    code = "verify_failed"


class DeviceToolMissing(ConsoleError):
    """The device lacks a tool that nothing can replace."""

    code = "unsupported"


class DeviceError(ConsoleError):
    """The device answered properly, and the answer is no (no such file, disk full, permission denied)."""

    code = "device"


class UbootError(ConsoleError):
    """U-Boot refused a command, or its console cannot be understood."""

    code = "uboot"
