# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Showing a line from a worker without a way to lock up Ansible. This plugin util is **PRIVATE** to the collection."""

from __future__ import annotations

import signal
import typing as t

_ENDINGS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGALRM})


def safely(show: t.Callable[[str], t.Any]) -> t.Callable[[str], None]:
    """*show* with the signals that end a worker or its task held back until the line is through.

    A worker hands its lines to the main process through a queue whose lock all processes share. One that is killed with
    the lock in its hands (Ctrl-C right after a line of progress) leaves the main process waiting for that lock for
    ever, and with it the session agent and the devices.
    """

    def shown(line: str) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS)
        try:
            show(line)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    return shown
