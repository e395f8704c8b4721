# SPDX-License-Identifier: Apache-2.0
"""Fake power devices with a protocol of their own on TCP, written from what is published about them."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class FakeTcpDevice:
    """Keeps relays 1..count; `stuck` ones never move; `cut` ends the connection in the middle of each answer."""

    def __init__(self, count: int) -> None:
        self.relays = dict.fromkeys(range(1, count + 1), False)
        self.stuck: set[int] = set()
        self.cut = False
        self.silent = False
        self.port = 0

    def switch(self, number: int, on: bool) -> None:
        if number not in self.stuck:
            self.relays[number] = on

    def talk(self, connection: Any) -> None:
        """One connection: an object with `read(count)`, `line()` and `write(data)`."""
        raise NotImplementedError

    @contextmanager
    def running(self) -> Iterator[FakeTcpDevice]:
        device = self

        class Handler(socketserver.StreamRequestHandler):
            def read(self, count: int) -> bytes:
                return self.rfile.read(count)

            def line(self) -> bytes:
                return self.rfile.readline()

            def write(self, data: bytes) -> None:
                if device.silent:
                    return
                if device.cut:
                    self.wfile.write(data[: len(data) // 2])
                    raise ConnectionError
                for at in range(0, len(data), 5):  # answers come in pieces
                    self.wfile.write(data[at : at + 5])
                    self.wfile.flush()

            def handle(self) -> None:
                try:
                    device.talk(self)
                except ConnectionError:
                    return

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        with Server(("127.0.0.1", 0), Handler) as server:
            self.port = server.server_address[1]
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()


class FakeKasa(FakeTcpDevice):
    """TP-Link Kasa: a plug (count 0: one relay, no sockets) or a strip, with a meter."""

    def __init__(self, count: int) -> None:
        super().__init__(max(count, 1))
        self.strip = count > 0

    @staticmethod
    def scramble(data: bytes, back: bool) -> bytes:
        key, out = 0xAB, []
        for byte in data:
            out.append(byte ^ key)
            key = byte if back else out[-1]
        return bytes(out)

    def talk(self, connection: Any) -> None:
        while head := connection.read(4):
            question = json.loads(self.scramble(connection.read(int.from_bytes(head, "big")), True))
            data = self.scramble(json.dumps(self.answer(question)).encode(), False)
            connection.write(len(data).to_bytes(4, "big") + data)

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        system = question.get("system", {})
        children = [{"id": f"8006AA{n - 1:02d}", "state": int(on), "alias": f"s{n}"} for n, on in self.relays.items()]
        which = 1
        if ids := question.get("context", {}).get("child_ids"):
            which = [child["id"] for child in children].index(ids[0]) + 1
        if "get_sysinfo" in system:
            info: dict[str, Any] = {"deviceId": "8006AA", "model": "KP303(UK)", "err_code": 0}
            info |= {"children": children} if self.strip else {"relay_state": int(self.relays[1])}
            return {"system": {"get_sysinfo": info}}
        if "set_relay_state" in system:
            self.switch(which, system["set_relay_state"]["state"] == 1)
            return {"system": {"set_relay_state": {"err_code": 0}}}
        if "emeter" in question:
            return {"emeter": {"get_realtime": {"voltage_mv": 230500, "current_ma": 120, "err_code": 0}}}
        return {"system": {"err_code": -1, "err_msg": "module not support"}}


class FakeEth008(FakeTcpDevice):
    """Devantech's relay board: bytes, and a password that is asked for before anything is switched."""

    def __init__(self, count: int = 8, password: str = "") -> None:
        super().__init__(count)
        self.password = password

    def talk(self, connection: Any) -> None:
        known = not self.password
        while command := connection.read(1):
            if command == b"\x79":
                known = connection.read(len(self.password or "?")) == self.password.encode() != b""
                connection.write(b"\x01" if known else b"\x02")
            elif command == b"\x7b":
                known = not self.password
            elif command in (b"\x20", b"\x21"):
                which, pulse = connection.read(2)
                fine = known and which in self.relays and pulse == 0
                if fine:
                    self.switch(which, command == b"\x20")
                connection.write(b"\x00" if fine else b"\x01")
            elif command == b"\x24":
                bits = sum(1 << (n - 1) for n, on in self.relays.items() if on)
                connection.write(bits.to_bytes((len(self.relays) + 7) // 8, "little"))


class FakeSiglent(FakeTcpDevice):
    """Siglent SPD3303X: SCPI lines, two channels, nothing is confirmed."""

    def __init__(self) -> None:
        super().__init__(2)

    def talk(self, connection: Any) -> None:
        while line := connection.line():
            words = line.decode().strip().upper().split()
            if words[0].startswith("OUTP"):
                channel, state = words[1].split(",")
                self.switch(int(channel[2:]), state == "ON")
            elif words[0] == "SYSTEM:STATUS?":
                connection.write(f"0x{sum(16 << (n - 1) for n, on in self.relays.items() if on) | 1:x}\n".encode())
            elif words[0].startswith("MEAS"):
                on = self.relays[int(words[1][2:])]
                value = (12.001 if "VOLT" in words[0] else 0.25) if on else 0.0
                connection.write(f"{value:.3f}\n".encode())
