# SPDX-License-Identifier: Apache-2.0
"""A port of a Yepkit YKUSH board as power supply: USB hubs that switch the power of what is plugged into them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import ClassVar

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.common.usb import UsbDevice, UsbKind, UsbReport, usb_opened
from jumpstarter_driver_power.common import PowerState
from jumpstarter_driver_power.switched import PowerError, SwitchedPower, wait_for_state
from jumpstarter_driver_yepkit.boards import ACCEPTED, ALL, BOARDS, DOWN, STATUS, UP, VENDOR, Board, board_of

__all__ = ["Ykush"]

_KIND = UsbKind(name="YKUSH board", ids=[(VENDOR, board.product) for board in BOARDS])
_DEFAULTS = ("on", "off", "keep")
_PORTS = ("1", "2", "3", "all")


@dataclass(kw_only=True)
class Ykush(SwitchedPower):
    """One port of a board, or all of them. The board tells the state of its ports, so each switch is verified.

    serial: of the board, as `lsusb -v` or `ykushcmd -l` show it; not needed while there is only one board. port: 1, 2,
    3 or all. default: what happens to the port when a session begins: on, off, or keep (nothing). timeout: seconds the
    board may take for an answer.
    """

    needs: ClassVar[tuple[str, ...]] = ("usb",)

    serial: str | None = None
    default: str = "keep"
    port: str | int = "all"
    timeout: float = 2.0
    _preparing: threading.Thread | None = field(init=False, default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        # YAML makes numbers of 1 and of a serial number without letters, and truth values of on and off.
        self.port = str(self.port).lower()
        self.serial = str(self.serial) if self.serial is not None else None
        self.default = {"True": "on", "False": "off"}.get(str(self.default), str(self.default))
        if self.port not in _PORTS:
            raise ConfigurationError(f"port is {self.port!r}, must be one of {', '.join(_PORTS)}")
        if self.default not in _DEFAULTS:
            raise ConfigurationError(f"default is {self.default!r}, must be one of {', '.join(_DEFAULTS)}")
        if not 0 < self.timeout <= 60:
            raise ConfigurationError(f"timeout is {self.timeout:g}, must be more than 0 and at most 60 seconds")

    @property
    def target(self) -> str:
        """The port, for messages."""
        return f"port {self.port} of {_KIND.where(self.serial)}"

    def reset(self) -> None:
        """Begin a session: bring the port into its default state, in the background; every call waits for that."""
        super().reset()
        if self.default != "keep":
            self._preparing = threading.Thread(target=self._to_default, name=f"default of {self.target}", daemon=True)
            self._preparing.start()

    def switch(self, on: bool) -> None:
        """Tell the board."""
        self._wait_until_prepared()
        self._tell(on)

    def state(self) -> PowerState:
        """Ask the board; "unknown" when this is about all ports and they differ."""
        self._wait_until_prepared()
        return self._seen()

    def close(self) -> None:
        """End of the session: nothing of it reaches the board afterwards."""
        self._wait_until_prepared()
        super().close()

    def _seen(self) -> PowerState:
        what = f"tell the state of port {self.port}"
        with usb_opened(_KIND, self.serial, self.timeout) as device, device.reports() as reports:
            board = self._board(device)
            found = {self._ask(device, reports, board, port, what) for port in self._ports(board)}
        return found.pop() if len(found) == 1 else "unknown"

    def _tell(self, on: bool) -> None:
        with usb_opened(_KIND, self.serial, self.timeout) as device, device.reports() as reports:
            board = self._board(device)
            which = ALL if self.port == "all" and board.ports > 1 else self._ports(board)[0]
            command = (UP if on else DOWN) | which
            what = f"switch port {self.port} {'on' if on else 'off'}"
            if (answer := _command(device, reports, board, command, what))[0] != ACCEPTED:
                raise PowerError(f"{device.name}: refused to {what}: its answer begins with {answer[:2].hex(' ')}")

    def _ask(self, device: UsbDevice, reports: UsbReport, board: Board, port: int, what: str) -> PowerState:
        answer = _command(device, reports, board, STATUS | port, what)
        if answer[0] != ACCEPTED or answer[1] & 0x0F != port:
            raise PowerError(
                f"{device.name}: does not {what}: its answer begins with {answer[:2].hex(' ')} "
                f"(expected {ACCEPTED:02x} and {port:x} as last digit); is its firmware current?"
            )
        return "on" if answer[1] >> 4 else "off"

    def _board(self, device: UsbDevice) -> Board:
        board = board_of(device.vendor_product[1])
        if self.port != "all" and int(self.port) > board.ports:
            raise ValueError(f"{device.name} is a {board.name}, which has no port {self.port}")
        return board

    def _ports(self, board: Board) -> list[int]:
        return list(range(1, board.ports + 1)) if self.port == "all" else [int(self.port)]

    def _to_default(self) -> None:
        try:
            self._tell(self.default == "on")
            if self.verify:
                wait_for_state(self._seen, "on" if self.default == "on" else "off", self.settle, self.target)
        except (OSError, RuntimeError, ValueError) as error:
            # Nobody waits for an answer here. Who uses the port hears of the same failure then.
            self.logger.error("%s: could not be brought to its default: %s", self.target, error)

    def _wait_until_prepared(self) -> None:
        if self._preparing is not None:
            self._preparing.join()


def _command(device: UsbDevice, reports: UsbReport, board: Board, command: int, what: str) -> bytes:
    answer = reports.exchange(bytes([command]).ljust(board.report, b"\0"), what)
    if len(answer) < 2:
        raise PowerError(f"{device.name}: does not {what}: its answer has {len(answer)} bytes")
    return answer
