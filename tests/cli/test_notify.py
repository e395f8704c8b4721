# SPDX-License-Identifier: Apache-2.0
"""systemd is told what happens, and nothing stops because it does not listen."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from jumpstarter_cli import notify as module
from jumpstarter_cli.notify import notify


def test_a_full_queue_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a relative name keeps the path short
    monkeypatch.setenv("NOTIFY_SOCKET", "systemd")
    monkeypatch.setattr(module, "_SECONDS", 0.001)
    told = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text()) + 50
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as silent:
        silent.bind("systemd")

        def tell() -> None:
            for number in range(told):
                notify(f"STATUS={number}")

        worker = threading.Thread(target=tell, daemon=True)
        worker.start()
        worker.join(30)
        assert not worker.is_alive(), "notify waits for somebody who does not read"
        assert silent.recv(100) == b"STATUS=0"
