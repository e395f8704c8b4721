# SPDX-License-Identifier: Apache-2.0
"""Runs inside ``jmp shell``: how long ``j power on`` takes, and how long its floor, in turns. Prints JSON."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


def timed(argv: list[str]) -> float:
    """Wall seconds of a command that must succeed."""
    started = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    return time.perf_counter() - started


def main(rounds: int) -> None:
    """``rounds`` of each."""
    folder = tempfile.mkdtemp()
    path = f"{folder}/s"
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()

    def answer() -> None:
        while True:
            peer, _ = server.accept()
            with peer:
                peer.recv(1000)
                peer.sendall(b"{}\n")

    threading.Thread(target=answer, daemon=True).start()
    j = str(Path(sys.executable).parent / "j")
    floor = [sys.executable, "-I", "-S", str(Path(__file__).with_name("socket_call.py")), path]
    timed([j, "power", "on"])
    result = {"j": [], "floor": []}
    for _ in range(rounds):
        result["floor"].append(timed(floor))
        result["j"].append(timed([j, "power", "on"]))
    print("TIMES " + json.dumps(result), flush=True)
    os._exit(0)


main(int(sys.argv[1]))
