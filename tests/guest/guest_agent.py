# SPDX-License-Identifier: Apache-2.0
"""Inside the test guest: runs commands for whoever connects. One connection is one command, and it dies with it.

The first line of a connection is JSON: {"argv", "env", "cwd"}. After it, both sides send frames: one byte that says
what it is, four bytes of length (big endian), the bytes. To the guest: "i" stdin (empty: end of stdin), "s" a signal's
number in decimal. From it: "p" process id, "o" stdout, "e" stderr, "x" exit code (last), "f" why it cannot be started.
Standard library only, so that it starts quickly under emulation.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from typing import BinaryIO

PORT = 5000


class Connection:
    """One command."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self.incoming = peer.makefile("rb")
        self.sending = threading.Lock()

    def send(self, kind: bytes, data: bytes) -> None:
        try:
            with self.sending:
                self.peer.sendall(kind + struct.pack(">I", len(data)) + data)
        except OSError:
            pass  # nobody listens any more: the reader below sees the same and ends the process

    def pump(self, kind: bytes, stream: BinaryIO) -> None:
        while data := os.read(stream.fileno(), 65536):
            self.send(kind, data)

    def control(self, process: subprocess.Popen[bytes]) -> None:
        """Obey the peer's frames; when it goes away, so does everything the command has started."""
        assert process.stdin is not None
        try:
            while header := self.incoming.read(5):
                if len(header) < 5:
                    break
                data = self.incoming.read(struct.unpack(">I", header[1:])[0])
                if header[:1] == b"s":
                    self.signal(process, int(data))
                elif data:
                    try:
                        process.stdin.write(data)
                        process.stdin.flush()
                    except BrokenPipeError:
                        pass  # it reads no more; its exit code tells
                else:
                    try:
                        process.stdin.close()
                    except BrokenPipeError:
                        pass
        except OSError as error:
            print(f"guest agent: {error}", flush=True)
        self.signal(process, signal.SIGKILL)

    @staticmethod
    def signal(process: subprocess.Popen[bytes], number: int) -> None:
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass

    def serve(self) -> None:
        with self.peer:
            line = self.incoming.readline()
            if not line:
                return
            request = json.loads(line)
            try:
                process = subprocess.Popen(
                    request["argv"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    cwd=request.get("cwd") or "/",
                    env={**os.environ, **(request.get("env") or {})},
                    start_new_session=True,
                )
            except (OSError, ValueError) as error:
                self.send(b"f", str(error).encode())
                return
            assert process.stdout is not None and process.stderr is not None
            self.send(b"p", str(process.pid).encode())
            control = threading.Thread(target=self.control, args=(process,), daemon=True)
            control.start()
            pumps = [
                threading.Thread(target=self.pump, args=pair, daemon=True)
                for pair in ((b"o", process.stdout), (b"e", process.stderr))
            ]
            for pump in pumps:
                pump.start()
            code = process.wait()
            # What it has started in the background may hold its output open: the command ends with its own process.
            self.signal(process, signal.SIGKILL)
            for pump in pumps:
                pump.join(10)
            self.send(b"x", str(code).encode())
            try:
                self.peer.shutdown(socket.SHUT_RDWR)  # close alone waits for the reader's thread
            except OSError:
                pass  # the peer has closed it first


def main() -> None:
    """Serve on all addresses: only the host of the emulated network reaches this machine."""
    with socket.create_server(("0.0.0.0", PORT), backlog=64) as listener:
        print("guest agent: ready", flush=True)
        while True:
            peer, _ = listener.accept()
            threading.Thread(target=Connection(peer).serve, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
