# SPDX-License-Identifier: Apache-2.0
"""The program that runs on the device, and the language it speaks.

The login shell of a device is made for people: it echoes, edits lines, prompts and cuts long lines. Preparation
starts a small non-interactive shell program on top of it (``device_shell.sh``) which reads one request per line and
answers in lines that carry a nonce; it stays until the console is handed back or the device reboots.

Request, one line: ``ID FINGERPRINT CODE``; the fingerprint (``checksum.fingerprint``) covers ``ID CODE``. The program
runs CODE (its own functions, user commands as quoted arguments) only when it is right and the ID is new: a line that
was damaged does nothing, a line that is sent again is not run again.

Replies (``@NONCE`` shown as ``@``):
  ``@ H``  the program started        ``@ X``  it ended             ``@ I``  it got ^C
  ``@ A id``  request understood, running        ``@ N id``  request damaged, send again
  ``@ R id FINGERPRINT [out size err size] value``  done; the fingerprint covers "id value\\n", so that no status can
  be damaged unnoticed; the others are those of the outputs. Short outputs follow, ``@ o`` / ``@ e`` and encoded
  lines, then ``@ Z id``.
  ``@ C n bs FINGERPRINT``  block n of a file; numbered encoded lines follow.
Anything else on the console is noise (kernel messages, echo) and is skipped wherever it appears.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

MAX_REQUEST = 1200
"""Bytes of a request line: far below the 4095 at which the line discipline of Linux cuts."""


# What a shell does something with, and would do if a damaged quote made it read our program as commands. On the way
# these travel as characters that the program does not use; `tr` on the device puts them back.
_ACTIVE = "\n $\"';()|&<>\\`!"
_STAND_INS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ~,"


@cache
def program() -> str:
    """The device program, without comments and indentation."""
    text = files(__package__).joinpath("device_shell.sh").read_text(encoding="ascii")
    stripped = (line.strip() for line in text.splitlines())
    return "".join(f"{line}\n" for line in stripped if line and not line.startswith("#"))


def _active() -> str:
    return "".join(char for char in _ACTIVE if char in program())


@cache
def stand_ins() -> str:
    """The characters that stand for the active ones on the way, in the same order."""
    active = _active()
    free = [char for char in _STAND_INS if char not in program()]
    if len(free) < len(active):
        raise AssertionError(f"device_shell.sh leaves only {free} of {_STAND_INS} unused")
    return "".join(free[: len(active)])


def pieces(text: str, limit: int = 250) -> list[str]:
    """``text`` (the program, and what is before it) as inert words of ``limit`` characters."""
    inert = text.translate(str.maketrans(_active(), stand_ins()))
    return [inert[at : at + limit] for at in range(0, len(inert), limit)]


def unpack_command() -> str:
    """The command that turns the inert program on its input into the program on its output."""
    back = "".join(f"\\{ord(char):03o}" for char in _active())
    return f"tr '{stand_ins()}' '{back}'"
