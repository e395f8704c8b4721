# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole lab for plays: the controller and exporters as processes, and a folder with playbooks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller_harness import LabFiles
from playing import Stage

#: A board without hardware: power that remembers, and a storage target.
MOCK_BOARD: dict[str, Any] = {
    "power": {"type": "jumpstarter_driver_power.driver.MockPower"},
    "storage": {"type": "jumpstarter_driver_opendal.driver.MockFlasher"},
}
_START_SECONDS = 120.0


@dataclass
class PlayedLab:
    """A running lab. admin: the client configuration of an administrator. stage: where plays run."""

    files: LabFiles
    admin: Path
    stage: Stage


@contextmanager
def running_exporter(lab: LabFiles, name: str, *options: str, export: Any = None) -> Iterator[subprocess.Popen[bytes]]:
    """Make an exporter and run it with `jmp run`; yields when it is registered."""
    path = lab.exporter(name, *options, export=MOCK_BOARD if export is None else export)
    with running_file(lab, name, path) as process:
        yield process


@contextmanager
def running_file(lab: LabFiles, name: str, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`jmp run` of a configuration file; yields when it has said that it is ready."""
    ready = lab.folder / f"{name}.ready"
    log = lab.folder / f"{name}.log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified, log.open("ab") as out:
        folder = os.open(lab.folder, os.O_RDONLY)
        try:
            # By descriptor: pytest's folders are too long for a socket's path.
            notified.bind(f"/proc/self/fd/{folder}/{ready.name}")
        finally:
            os.close(folder)
        notified.settimeout(_START_SECONDS)
        link = Path(f"/tmp/jl-ready-{os.getpid()}-{id(notified):x}")
        link.symlink_to(ready)
        process = subprocess.Popen(
            [sys.executable, "-m", "jumpstarter_cli.jmp", "run", "--exporter-config", str(path)],
            stdout=out,
            stderr=out,
            env={**os.environ, "NOTIFY_SOCKET": str(link)},
            start_new_session=True,
        )
        try:
            try:
                while b"READY=1" not in notified.recv(4096):
                    pass
            except TimeoutError:
                raise AssertionError(f"exporter {name} did not start: {log.read_text()[-2000:]}") from None
            yield process
            process.terminate()
            process.wait(120)
        finally:
            link.unlink()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
