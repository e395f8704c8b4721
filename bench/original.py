# SPDX-License-Identifier: Apache-2.0
"""The original, Jumpstarter 0.9.0 from PyPI, in a virtual environment of its own below build/.

Benchmarks measure it beside ours; the interop tests talk to it. It cannot share an environment with ours.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ORIGINAL = Path(__file__).resolve().parent.parent / "build" / "original-0.9"
PACKAGES = ["jumpstarter", "jumpstarter-cli", "jumpstarter-protocol"] + [
    f"jumpstarter-driver-{name}"
    for name in (
        "can",
        "composite",
        "corellium",
        "dut-network",
        "energenie",
        "esp32",
        "flashers",
        "gpiod",
        "http",
        "http-power",
        "iscsi",
        "network",
        "noyito-relay",
        "opendal",
        "pi-pico",
        "power",
        "probe-rs",
        "pyserial",
        "qemu",
        "shell",
        "snmp",
        "ssh",
        "tasmota",
        "tftp",
        "ustreamer",
        "vnc",
    )
]


def original_python() -> Path | None:
    """The interpreter of that environment, made on first use; None (and a line on stderr) when it cannot be had."""
    python = ORIGINAL / "bin" / "python"
    stamp = ORIGINAL / ".complete"
    ORIGINAL.parent.mkdir(parents=True, exist_ok=True)
    with ORIGINAL.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # parallel test workers make it once
        installed = stamp.read_text().split() if stamp.exists() else []
        if set(PACKAGES) <= set(installed):
            return python
        print("installing jumpstarter 0.9.0 into a virtual environment of its own ...", file=sys.stderr, flush=True)
        if not stamp.exists():
            shutil.rmtree(ORIGINAL, ignore_errors=True)
            venv.create(ORIGINAL, with_pip=True)
        done = subprocess.run(
            [python, "-m", "pip", "install", "-q", *(f"{p}==0.9.0" for p in PACKAGES)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            print(f"the original cannot be installed: {done.stderr.strip()[-300:]}", file=sys.stderr)
            return None
        stamp.write_text("\n".join(PACKAGES))
    return python
