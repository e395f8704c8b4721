# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker is never ended while it holds the lock of Ansible's display queue."""

from __future__ import annotations

import signal
import threading

import pytest

from ansible_collections.jumpstarter.lab.plugins.plugin_utils._show import safely


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGALRM])
def test_a_signal_waits_until_the_line_is_through(sig: signal.Signals) -> None:
    happened: list[str] = []
    before = signal.signal(sig, lambda _number, _frame: happened.append("signal"))

    def show(line: str) -> None:
        happened.append(f"begin {line}")
        signal.pthread_kill(threading.get_ident(), sig)
        happened.append(f"end {line}")

    try:
        safely(show)("one")
    finally:
        signal.signal(sig, before)
    assert happened == ["begin one", "end one", "signal"]


def test_signals_come_through_again_when_showing_fails() -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def show(line: str) -> None:
        raise OSError(line)

    with pytest.raises(OSError, match="full"):
        safely(show)("full")
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
