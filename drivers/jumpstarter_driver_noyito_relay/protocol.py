# SPDX-License-Identifier: Apache-2.0
"""What NOYITO relay boards (LCUS type) understand, over a serial line and over HID alike.

A command is A0, channel, state, and the sum of the three in one byte. The boards tell their state as text, a line for
each channel: "CH1: ON". Source: the vendor's product pages (serial: 9600 8N1, FF asks for the state; HID: channel 0F
with state 02 asks).
"""

from __future__ import annotations

import re

from jumpstarter_driver_power.switched import PowerError

__all__ = ["ASK_HID", "ASK_SERIAL", "command", "combined", "parse_states"]

_LINE = re.compile(r"CH(\d+)\s*:\s*(ON|OFF)", re.IGNORECASE)


def command(channel: int, state: int) -> bytes:
    """The frame that sets one channel."""
    return bytes([0xA0, channel, state, (0xA0 + channel + state) & 0xFF])


ASK_SERIAL = b"\xff"
ASK_HID = command(0x0F, 0x02)


def parse_states(text: bytes) -> dict[int, bool]:
    """The channels in what a board said so far; a line that is not complete yet is left out."""
    return {int(number): word.upper() == "ON" for number, word in _LINE.findall(text.decode("ascii", "replace"))}


def combined(states: dict[int, bool], channels: list[int], target: str, raw: bytes) -> str:
    """ "on", "off", or "partial" when the channels differ. Raises `PowerError` for a channel nothing was said of."""
    missing = [channel for channel in channels if channel not in states]
    if missing:
        raise PowerError(
            f"{target}: the board did not tell the state of channel {missing[0]} (it said {raw[:60]!r}); "
            "is it this kind of board, with this many channels?"
        )
    chosen = {states[channel] for channel in channels}
    return "partial" if len(chosen) > 1 else "on" if chosen.pop() else "off"
