# SPDX-License-Identifier: Apache-2.0
"""NOYITO USB relay boards: two channels on a serial line, four or eight over HID."""

from __future__ import annotations

import errno
import termios
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_driver_noyito_relay.protocol import ASK_HID, ASK_SERIAL, combined, command, parse_states
from jumpstarter_driver_power.common import PowerState
from jumpstarter_driver_power.switched import SwitchedPower

__all__ = ["NoyitoPowerHID", "NoyitoPowerSerial"]

_CLIENT = "jumpstarter_driver_noyito_relay.client.NoyitoPowerClient"
_BAUD = 9600

#: By board: drivers for its channels share it, and each opens it for as long as one question takes.
_turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


@dataclass(kw_only=True)
class NoyitoPowerSerial(SwitchedPower):
    """A channel of the two-channel board with a CH340 serial chip.

    port: the serial device, best by its name under /dev/serial/by-id, or a URL of pyserial. channel: 1 or 2.
    all_channels: switch both together. timeout: seconds for an answer, and for getting the port when it is in use.
    """

    needs: ClassVar[tuple[str, ...]] = ("serial",)

    port: str
    channel: int = 1
    all_channels: bool = False
    timeout: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.all_channels and self.channel not in (1, 2):
            raise ConfigurationError(f"channel is {self.channel}, must be 1 or 2")
        _check_timeout(self.timeout)

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return _CLIENT

    @property
    def target(self) -> str:
        """The channel, for messages."""
        return f"{_channels_text(self._channels)} of the relay board at {self.port}"

    @property
    def _channels(self) -> list[int]:
        return [1, 2] if self.all_channels else [self.channel]

    @contextmanager
    def _board(self) -> Iterator[Any]:
        """The open port, for nobody else meanwhile. Raises `ConnectionError`, `TimeoutError`."""
        import serial

        deadline = time.monotonic() + self.timeout
        with _turns[self.port]:
            while True:
                try:
                    port = serial.serial_for_url(
                        self.port, baudrate=_BAUD, timeout=0.05, write_timeout=self.timeout, do_not_open=True
                    )
                    port.exclusive = True  # another process may ask another channel just now
                    port.open()
                    break
                except (OSError, ValueError) as error:  # SerialException is an OSError
                    busy = getattr(error, "errno", None) in (errno.EAGAIN, errno.EBUSY)
                    if not busy or time.monotonic() > deadline:
                        why = "is used by another process" if busy else _plain(error)
                        raise ConnectionError(f"{self.target}: {why}") from None
                    time.sleep(0.05)
            try:
                yield port
            except serial.SerialTimeoutException:
                raise TimeoutError(f"{self.target}: the board took no command for {self.timeout:g} s") from None
            except (OSError, termios.error) as error:  # pyserial lets what the terminal said through
                raise ConnectionError(f"{self.target}: {_plain(error)}; was the board unplugged?") from None
            finally:
                port.close()

    def switch(self, on: bool) -> None:
        """Send the frame of each channel; the board does not answer."""
        with self._board() as port:
            for channel in self._channels:
                port.write(command(channel, int(on)))
            port.flush()

    def state(self) -> PowerState:
        """Ask, and read until each channel was told. "partial" when they differ."""
        with self._board() as port:
            port.reset_input_buffer()
            port.write(ASK_SERIAL)
            port.flush()
            said = b""
            deadline = time.monotonic() + self.timeout
            while time.monotonic() < deadline and not set(self._channels) <= set(parse_states(said)):
                said += port.read(max(1, port.in_waiting))
        if not said:
            raise TimeoutError(
                f"{self.target}: no answer within {self.timeout:g} s; is it a board that tells its state?"
            )
        return cast(PowerState, combined(parse_states(said), self._channels, self.target, said))


@dataclass(kw_only=True)
class NoyitoPowerHID(SwitchedPower):
    """A channel of the four- or eight-channel HID board.

    vendor_id, product_id: of the board. serial: its serial number, where several boards are plugged in. num_channels: 4
    or 8. channel: from 1. all_channels: switch all of them together. timeout: seconds for an answer.
    """

    needs: ClassVar[tuple[str, ...]] = ("hid",)

    vendor_id: int = 5131
    product_id: int = 2007
    serial: str | None = None
    num_channels: int = 4
    channel: int = 1
    all_channels: bool = False
    timeout: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_channels not in (4, 8):
            raise ConfigurationError(f"num_channels is {self.num_channels}, must be 4 or 8")
        if not self.all_channels and not 1 <= self.channel <= self.num_channels:
            raise ConfigurationError(f"channel is {self.channel}, must be 1 to {self.num_channels}")
        _check_timeout(self.timeout)

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return _CLIENT

    @property
    def target(self) -> str:
        """The channel, for messages."""
        board = f"{self.vendor_id:04x}:{self.product_id:04x}" + (f" {self.serial}" if self.serial else "")
        return f"{_channels_text(self._channels)} of the HID relay board {board}"

    @property
    def _channels(self) -> list[int]:
        return list(range(1, self.num_channels + 1)) if self.all_channels else [self.channel]

    @contextmanager
    def _board(self) -> Iterator[Any]:
        """The open device. Raises `ConnectionError`."""
        import hid

        with _turns[f"{self.vendor_id}:{self.product_id}:{self.serial}"]:
            try:
                device = hid.Device(self.vendor_id, self.product_id, self.serial)
            except hid.HIDException as error:
                raise ConnectionError(
                    f"{self.target}: cannot be opened: {error} (plugged in? may this user write to its hidraw?)"
                ) from None
            try:
                yield device
            except hid.HIDException as error:
                raise ConnectionError(f"{self.target}: {error}") from None
            finally:
                device.close()

    def switch(self, on: bool) -> None:
        """Send the frame of each channel; the board does not answer."""
        with self._board() as device:
            for channel in self._channels:
                device.write(b"\x00" + command(channel, int(on)))  # 0: the board has no numbered reports

    def state(self) -> PowerState:
        """Ask, and read reports until each channel was told. "partial" when they differ."""
        with self._board() as device:
            device.write(b"\x00" + ASK_HID)
            said = b""
            deadline = time.monotonic() + self.timeout
            while time.monotonic() < deadline and not set(self._channels) <= set(parse_states(said)):
                # Reports are padded with zeros; a line may go on in the next one.
                said += bytes(device.read(64, timeout=100)).replace(b"\x00", b"")
        if not said:
            raise TimeoutError(f"{self.target}: no answer within {self.timeout:g} s")
        return cast(PowerState, combined(parse_states(said), self._channels, self.target, said))


def _check_timeout(timeout: float) -> None:
    if not 0 < timeout <= 30:
        raise ConfigurationError(f"timeout is {timeout:g}, must be more than 0 and at most 30 seconds")


def _channels_text(channels: list[int]) -> str:
    return f"channel {channels[0]}" if len(channels) == 1 else f"channels {channels[0]} to {channels[-1]}"


def _plain(error: BaseException) -> str:
    if isinstance(error, termios.error):
        return str(error.args[-1])
    return getattr(error, "strerror", None) or " ".join(str(error).split())
