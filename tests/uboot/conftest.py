# SPDX-License-Identifier: Apache-2.0
"""U-Boot for the tests: the real one in QEMU, and one made of a thread that misbehaves as real hardware does."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FIRMWARE = Path("/usr/lib/u-boot/qemu_arm64/u-boot.bin")


def board(**config: Any) -> Any:
    """A tree as an exporter would have it: the machine, and U-Boot by reference."""
    from jumpstarter_driver_composite.driver import Composite, Proxy
    from jumpstarter_driver_qemu.driver import Qemu
    from jumpstarter_driver_uboot.driver import UbootConsole

    machine = Qemu(
        arch="aarch64",
        mem="128M",
        smp=1,
        vnc=False,
        cloud_init=False,
        powerdown_timeout=0,
        default_partitions={"bios": FIRMWARE},
        **config,
    )
    uboot = UbootConsole(children={"power": Proxy(ref="qemu.power"), "serial": Proxy(ref="qemu.console")})
    return Composite(children={"qemu": machine, "uboot": uboot})


@pytest.fixture(scope="module")
def shared() -> Iterator[Any]:
    """One board for the tests of a module; they leave it on or off, at the prompt or not."""
    from jumpstarter.common.utils import serve

    with serve(board()) as client:
        yield client


@pytest.fixture(scope="module")
def prompt(shared: Any) -> Any:
    """The same board, with U-Boot at its prompt."""
    shared.uboot.call("reboot_to_prompt", 0, 60)
    return shared


class FakeUboot:
    """A U-Boot command line on a unix socket.

    lose: positions in the stream of typed characters that are lost. noise: printed in the middle of each output.
    commands: answers, as (output, exit status).
    """

    def __init__(self, path: str, *, lose: set[int] | None = None, noise: bytes = b"", wrap: int = 0) -> None:
        self.lose = lose or set()
        self.noise = noise
        self.wrap = wrap
        self.commands: dict[str, tuple[bytes, int]] = {
            "true": (b"", 0),
            "false": (b"", 1),
            "hello": (b"hi there\r\n", 0),
        }
        self.lines: list[str] = []
        self._typed = 0
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(path)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._sock.close()

    def _work(self) -> None:
        line = b""
        while data := self._read():
            for byte in data:
                char = bytes([byte])
                position, self._typed = self._typed, self._typed + 1
                if char == b"\x03":
                    line = b""
                    self._sock.sendall(b"<INTERRUPT>\r\n=> ")
                elif position in self.lose:
                    continue
                elif char == b"\r":
                    self._sock.sendall(b"\r\n" + self._answer(line.decode()) + b"=> ")
                    line = b""
                else:
                    line += char
                    fold = b"\r\n" if self.wrap and len(line) % self.wrap == 0 else b""
                    self._sock.sendall(char + fold)

    def _read(self) -> bytes:
        try:
            return self._sock.recv(4096)
        except OSError:
            return b""

    def _answer(self, line: str) -> bytes:
        self.lines.append(line)
        found = re.fullmatch(r"echo (\w+)'b'; (.*); echo \1'e'\$\?", line)
        if found is None:
            return b"Unknown command\r\n"
        mark, command = found.groups()
        output, status = self.commands.get(command, (b"Unknown command\r\n", 1))
        return f"{mark}b\r\n".encode() + output + self.noise + f"{mark}e{status}\r\n".encode()


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Serve a U-Boot driver over a fake device: ``client, device = fake(lose={5})``."""
    from contextlib import ExitStack

    from jumpstarter.common.utils import serve
    from jumpstarter_driver_power.driver import MockPower
    from jumpstarter_driver_pyserial.driver import PySerial
    from jumpstarter_driver_uboot.driver import UbootConsole

    with ExitStack() as stack:

        def make(prompt: str = "\n=>", **quirks: Any) -> tuple[Any, FakeUboot]:
            path = str(tmp_path / "uart")
            serial = PySerial(url=f"unix-listen://{path}", check_present=False)
            power = MockPower()
            client = stack.enter_context(
                serve(UbootConsole(children={"power": power, "serial": serial}, prompt=prompt))
            )
            client.power.on()
            device = FakeUboot(path, **quirks)
            stack.callback(device.close)
            return client, device

        yield make
