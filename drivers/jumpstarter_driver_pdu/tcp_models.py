# SPDX-License-Identifier: Apache-2.0
"""Devices with a small protocol of their own on a TCP connection."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jumpstarter_driver_pdu.model import Backend, Model, outlet_number
from jumpstarter_driver_power.common import PowerReading, PowerState
from jumpstarter_driver_power.switched import PowerError

if TYPE_CHECKING:
    from jumpstarter_driver_pdu.driver import Pdu

__all__ = ["TCP_MODELS"]

_LARGEST = 1 << 20


class Connection:
    """A TCP connection with a deadline for all that is done on it."""

    def __init__(self, connected: socket.socket, name: str, timeout: float) -> None:
        self._socket = connected
        self.name = name
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout

    def _guard(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"{self.name}: no answer within {self._timeout:g} s")
        self._socket.settimeout(left)

    def send(self, data: bytes) -> None:
        """Send all of it. Raises `TimeoutError`, `ConnectionError`."""
        self._guard()
        with _named(self.name, self._timeout):
            self._socket.sendall(data)

    def receive(self, count: int) -> bytes:
        """Exactly `count` bytes. Raises `TimeoutError`, `ConnectionError`."""
        data = b""
        while len(data) < count:
            data += self._some(count - len(data))
        return data

    def line(self) -> bytes:
        """Up to the next line end, without it."""
        data = b""
        while not data.endswith(b"\n"):
            data += self._some(1)
            if len(data) > _LARGEST:
                raise PowerError(f"{self.name}: the answer has no end")
        return data.strip()

    def _some(self, most: int) -> bytes:
        self._guard()
        with _named(self.name, self._timeout):
            data = self._socket.recv(most)
        if not data:
            raise ConnectionError(f"{self.name}: the device ended the connection in the middle of an answer")
        return data


@contextmanager
def _named(name: str, timeout: float) -> Iterator[None]:
    """Let errors of the socket name the device."""
    try:
        yield
    except TimeoutError:
        raise TimeoutError(f"{name}: no answer within {timeout:g} s") from None
    except OSError as error:
        raise ConnectionError(f"{name}: {error.strerror or error}") from None


class TcpBackend:
    """An outlet behind a TCP connection that is made for each question."""

    def __init__(self, pdu: Pdu) -> None:
        self._pdu = pdu
        self._outlet = int(pdu.outlet)

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        pdu = self._pdu
        name = f"{pdu.host}:{pdu.effective_port}"
        with _named(name, pdu.timeout):
            connected = socket.create_connection((pdu.host, pdu.effective_port), timeout=pdu.timeout)
        with connected:
            yield Connection(connected, name, pdu.timeout)

    def measure(self) -> PowerReading:
        """Not offered, unless a subclass does."""
        raise NotImplementedError(f"a device of the model {self._pdu.model} cannot measure, or not in a documented way")

    def close(self) -> None:
        """Nothing is held."""


def tplink_cipher(data: bytes, key: int = 171) -> bytes:
    """TP-Link's autokey XOR: each byte is the key of the next one. Undone by `tplink_plain`."""
    out = bytearray()
    for byte in data:
        key ^= byte
        out.append(key)
    return bytes(out)


def tplink_plain(data: bytes, key: int = 171) -> bytes:
    """The reverse of `tplink_cipher`."""
    out = bytearray()
    for byte in data:
        out.append(key ^ byte)
        key = byte
    return bytes(out)


class TpLink(TcpBackend):
    """TP-Link Kasa plugs and strips: JSON, "encrypted" with a constant, after its length in four bytes. No login.

    Outlet 0 is a plug's only relay; the sockets of a strip count from 1.
    """

    def switch(self, on: bool) -> None:
        """Tell."""
        with self._connected() as link:
            context = self._context(link)
            answer = self._ask(link, {**context, "system": {"set_relay_state": {"state": int(on)}}})
            self._checked(link, answer, "system", "set_relay_state")

    def state(self) -> PowerState:
        """Ask."""
        with self._connected() as link:
            info = self._info(link)
            state = info.get("relay_state") if self._outlet == 0 else self._child(link, info).get("state")
        return "on" if state == 1 else "off" if state == 0 else "unknown"

    def measure(self) -> PowerReading:
        """Volts and amperes, of devices that have a meter."""
        with self._connected() as link:
            context = self._context(link)
            answer = self._ask(link, {**context, "emeter": {"get_realtime": {}}})
            values = answer.get("emeter", {}).get("get_realtime", {})
        if values.get("err_code", 0) == 0 and {"voltage_mv", "current_ma"} <= set(values):
            return PowerReading(voltage=values["voltage_mv"] / 1000, current=values["current_ma"] / 1000)
        if values.get("err_code", 0) == 0 and {"voltage", "current"} <= set(values):  # older hardware
            return PowerReading(voltage=values["voltage"], current=values["current"])
        return super().measure()

    def _context(self, link: Connection) -> dict[str, Any]:
        if self._outlet == 0:
            return {}
        info = self._info(link)
        child = str(self._child(link, info)["id"])
        # Strips name their sockets by two digits after their own id, some in full and some only by the digits.
        whole = child if len(child) > 2 else f"{info.get('deviceId', '')}{child}"
        return {"context": {"child_ids": [whole]}}

    def _child(self, link: Connection, info: dict[str, Any]) -> dict[str, Any]:
        children = info.get("children", [])
        if not children:
            raise PowerError(f"{link.name}: a plug without sockets of its own; its relay is outlet 0")
        if self._outlet > len(children):
            raise PowerError(f"{link.name}: the strip has {len(children)} sockets, and no {self._outlet}")
        child: dict[str, Any] = children[self._outlet - 1]
        return child

    def _info(self, link: Connection) -> dict[str, Any]:
        answer = self._ask(link, {"system": {"get_sysinfo": {}}})
        return self._checked(link, answer, "system", "get_sysinfo")

    @staticmethod
    def _checked(link: Connection, answer: dict[str, Any], module: str, command: str) -> dict[str, Any]:
        result = answer.get(module, {}).get(command, {})
        if result.get("err_code") != 0:
            why = result.get("err_msg") or result.get("err_code", "no result")
            raise PowerError(f"{link.name}: {command} failed: {why}")
        return dict(result)

    @staticmethod
    def _ask(link: Connection, question: dict[str, Any]) -> dict[str, Any]:
        data = tplink_cipher(json.dumps(question).encode())
        link.send(struct.pack(">I", len(data)) + data)
        (length,) = struct.unpack(">I", link.receive(4))
        if length > _LARGEST:
            raise PowerError(f"{link.name}: does not speak this protocol; newer devices (KLAP, TPAP) do not")
        try:
            answer = json.loads(tplink_plain(link.receive(length)))
        except ValueError:
            raise PowerError(f"{link.name}: the answer is no JSON; is it a Kasa device with the port 9999?") from None
        if not isinstance(answer, dict):
            raise PowerError(f"{link.name}: the answer is no JSON object")
        return answer


class DevantechEth(TcpBackend):
    """Devantech ETH002, ETH008, ETH484, ETH8020: 20 N 0 switches on, 21 N 0 off, 24 asks; 79 and the password first."""

    _ON, _OFF, _GET, _PASSWORD, _LOGOUT = 0x20, 0x21, 0x24, 0x79, 0x7B

    @contextmanager
    def _logged_in(self) -> Iterator[Connection]:
        password = self._pdu.secret()
        with self._connected() as link:
            if password is not None:
                link.send(bytes([self._PASSWORD]) + password.encode())
                if link.receive(1) != b"\x01":
                    raise PermissionError(f"{link.name}: the board refuses the password")
            try:
                yield link
            finally:
                if password is not None:
                    link.send(bytes([self._LOGOUT]))

    def switch(self, on: bool) -> None:
        """Tell."""
        with self._logged_in() as link:
            link.send(bytes([self._ON if on else self._OFF, self._outlet, 0]))
            if link.receive(1) != b"\x00":
                raise PowerError(f"{link.name}: the board refuses relay {self._outlet}; does it want a password?")

    def state(self) -> PowerState:
        """Ask. Boards with more than eight relays answer with a byte for each eight."""
        with self._logged_in() as link:
            link.send(bytes([self._GET]))
            data = link.receive((self._outlet - 1) // 8 + 1)
        return "on" if data[-1] >> ((self._outlet - 1) % 8) & 1 else "off"


class SiglentSpd(TcpBackend):
    """Siglent SPD3303X and SPD3303X-E: SCPI lines. Bits 4 and 5 of SYSTem:STATus? are the channels 1 and 2."""

    def switch(self, on: bool) -> None:
        """Tell."""
        with self._connected() as link:
            link.send(f"OUTPut CH{self._outlet},{'ON' if on else 'OFF'}\n".encode())
            # The supply confirms nothing; an answer to the next question shows that it has read the line.
            self._number(link, "SYSTem:STATus?", 16)

    def state(self) -> PowerState:
        """Ask."""
        with self._connected() as link:
            status = int(self._number(link, "SYSTem:STATus?", 16))
        return "on" if status >> (3 + self._outlet) & 1 else "off"

    def measure(self) -> PowerReading:
        """Volts and amperes of the channel."""
        with self._connected() as link:
            voltage = self._number(link, f"MEASure:VOLTage? CH{self._outlet}")
            current = self._number(link, f"MEASure:CURRent? CH{self._outlet}")
        return PowerReading(voltage=voltage, current=current)

    @staticmethod
    def _number(link: Connection, question: str, base: int = 0) -> float:
        link.send(f"{question}\n".encode())
        said = link.line().decode("ascii", "replace")
        try:
            return int(said, base) if base else float(said)
        except ValueError:
            raise PowerError(f"{link.name}: the answer to {question} is no number: {said:.40}") from None


def _model(
    title: str, source: str, port: int, outlets: tuple[int, int], make: Callable[[Pdu], Backend], names: str = ""
) -> Model:
    return Model(
        title=title,
        source=source,
        kind="tcp",
        port=port,
        outlets=names or f"{outlets[0]} to {outlets[1]}",
        check=outlet_number(*outlets),
        make=make,
    )


TCP_MODELS: dict[str, Model] = {
    "devantech-eth": _model(
        "Devantech (Robot Electronics) ETH002, ETH008, ETH484, ETH8020",
        "the vendor's ETH008 and ETH8020 documentation, TCP access and commands",
        17494,
        (1, 20),
        DevantechEth,
    ),
    "siglent-spd3000": _model(
        "Siglent SPD3303X, SPD3303X-E",
        "the vendor's SPD3303X programming guide, and its example with LAN sockets",
        5025,
        (1, 2),
        SiglentSpd,
    ),
    "tplink": _model(
        "TP-Link Kasa HS100, HS110, HS300, KP303 and others with the port 9999",
        "softScheck, Reverse Engineering the TP-Link HS110",
        9999,
        (0, 16),
        TpLink,
        "0 for a plug, 1 to 16 for the sockets of a strip",
    ),
}
