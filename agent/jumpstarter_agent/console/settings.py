# SPDX-License-Identifier: Apache-2.0
"""What may be configured about a console."""

from __future__ import annotations

from dataclasses import dataclass, field

from .phases import PhasePatterns


@dataclass(frozen=True, slots=True)
class Login:
    """Who logs in. The password is shown nowhere, not in the ``repr`` either; None: there is none to give."""

    user: str
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ConsoleSettings:
    """Defaults suit a Linux device behind U-Boot.

    ``login`` is used wherever a login prompt stands in the way. ``quiet_kernel``: as root, keep kernel messages
    below emergencies off the console while commands run. ``autoboot_key`` stops the countdown of the bootloader.
    """

    login: Login | None = None
    patterns: PhasePatterns = field(default_factory=PhasePatterns)
    quiet_kernel: bool = True
    autoboot_key: bytes = b" "
    autoboot_interval: float = 0.1
