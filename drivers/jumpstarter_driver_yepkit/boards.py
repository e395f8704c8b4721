# SPDX-License-Identifier: Apache-2.0
"""Yepkit's switchable USB hubs: what they are called, how many ports they have, what their reports mean.

Facts from the maker's own tool (github.com/Yepkit/ykush): a board is a HID device of vendor 04d8. The first byte of a
report is the command, its low nibble the port (a: all): 1x switches on, 0x off, 2x asks. The first byte of the answer
is 1 when the board took the command; the second byte of the answer to 2x has the port in its low nibble and anything
but 0 in the high one when the port is on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["ALL", "BOARDS", "DOWN", "STATUS", "UP", "Board", "board_of"]

VENDOR: Final = 0x04D8
UP: Final = 0x10
DOWN: Final = 0x00
STATUS: Final = 0x20
ALL: Final = 0x0A
ACCEPTED: Final = 0x01


@dataclass(frozen=True)
class Board:
    """One model. product: its USB product id; ports: how many can be switched; report: bytes of a report."""

    name: str
    product: int
    ports: int
    report: int = 64


BOARDS: Final = (
    Board("YKUSH", 0xF2F7, 3),
    Board("YKUSH of the first generation", 0x0042, 3, report=6),
    Board("YKUSH3", 0xF11B, 3),
    Board("YKUSH XS", 0xF0CD, 1),
)


def board_of(product: int) -> Board:
    """The model with that USB product id."""
    return next(board for board in BOARDS if board.product == product)
