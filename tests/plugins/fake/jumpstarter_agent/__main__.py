# SPDX-License-Identifier: GPL-3.0-or-later
"""A fake agent: answers each operation as FAKE_AGENT_SCRIPT (a JSON file) says and writes down what it was asked.

It stands in for the real agent only where a test needs an answer the real one gives rarely or never: odd frames, death
in the middle, a start that fails. Script: {"start": "ok" | "fail", OP: [step, ...]} with step one of
{"event": .., "data": ..}, {"result": ..}, {"error": ..}, {"raw": text}, {"die": true}, {"hang": true}.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import struct
import sys
import threading
from typing import Any


def send(sock: socket.socket, body: bytes) -> None:
    sock.sendall(struct.pack(">I", len(body)) + body)


def receive(sock: socket.socket) -> dict[str, Any]:
    (length,) = struct.unpack(">I", sock.recv(4, socket.MSG_WAITALL))
    frame: dict[str, Any] = json.loads(sock.recv(length, socket.MSG_WAITALL))
    return frame


def note(entry: dict[str, Any]) -> None:
    with open(os.environ["FAKE_AGENT_LOG"], "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def serve(sock: socket.socket, script: dict[str, Any]) -> None:
    with sock:
        try:
            frame = receive(sock)
        except struct.error:  # somebody only looked whether we are here
            return
        note(frame)
        for step in script.get(frame["op"], [{"result": {"changed": True}}]):
            if "event" in step:
                send(sock, json.dumps({"type": "event", **step}).encode())
            elif "result" in step:
                send(sock, json.dumps({"type": "result", "value": step["result"]}).encode())
            elif "error" in step:
                send(sock, json.dumps({"type": "error", "error": step["error"]}).encode())
            elif "raw" in step:
                send(sock, step["raw"].encode())
            elif "die" in step:
                os._exit(9)
            elif "hang" in step:
                sock.recv(1)  # returns when the plugin goes away
                note({"op": "gone", "during": frame["op"]})


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--dir", "--watch-pid", "--watch-start", "--ready-fd"):
        parser.add_argument(name, required=True)
    options = parser.parse_args()
    with open(os.environ["FAKE_AGENT_SCRIPT"], encoding="utf-8") as file:
        script = json.load(file)
    if script.get("start") == "fail":
        sys.exit("the fake agent does not want to start")
    recording_dir = os.environ.get("JUMPSTARTER_RECORDING_DIR")
    note({"op": "start", "pid": os.getpid(), "watch_pid": int(options.watch_pid), "recording_dir": recording_dir})
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(os.path.join(options.dir, "agent.sock"))
    server.listen(64)
    os.write(int(options.ready_fd), b"R")
    os.close(int(options.ready_fd))
    threading.Thread(target=accept, args=(server, script), daemon=True).start()
    pidfd = os.pidfd_open(int(options.watch_pid))
    import select

    select.select([pidfd], [], [])
    shutil.rmtree(options.dir)


def accept(server: socket.socket, script: dict[str, Any]) -> None:
    while True:
        sock, _peer = server.accept()
        # No daemon: what hangs notes the end of the run before this process ends.
        threading.Thread(target=serve, args=(sock, script)).start()


main()
