# SPDX-License-Identifier: Apache-2.0
"""How the virtual board fails; each message is one line."""

from __future__ import annotations

from jumpstarter.common.exceptions import DriverError

__all__ = ["MachineBusy", "MachineError"]


class MachineError(DriverError):
    """QEMU did not start or does not do what it was asked; the message has QEMU's own reason."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="INTERNAL")


class MachineBusy(DriverError):
    """The machine is on (or off, or somebody else's) when the call needs it otherwise."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="FAILED_PRECONDITION")
