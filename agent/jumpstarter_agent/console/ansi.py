# SPDX-License-Identifier: Apache-2.0
"""Terminal control sequences: taken out before anything is compared or shown."""

from __future__ import annotations

import re

# CSI (cursor, colour, bracketed paste), OSC (titles, shell integration) with either terminator, charset and
# keypad selections, and the bare two-byte escapes.
_SEQUENCES = re.compile(
    rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[()*+#%][0-9A-Za-z]|\x1b[=>78A-Za-z]"
)
_TAIL = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]*)?$")


def strip_ansi(data: bytes) -> bytes:
    """``data`` without control sequences, an unfinished one at the end included, and without NUL and BEL."""
    if b"\x1b" in data:
        data = _TAIL.sub(b"", _SEQUENCES.sub(b"", data))
    return data.replace(b"\0", b"").replace(b"\x07", b"")


def apply_backspaces(data: bytes) -> bytes:
    """``data`` as a terminal would show it after its backspaces (U-Boot counts down with them)."""
    if b"\b" not in data:
        return data
    shown = bytearray()
    for byte in data:
        if byte == 8:
            del shown[-1:]
        else:
            shown.append(byte)
    return bytes(shown)


def readable(data: bytes) -> str:
    """``data`` as one printable line: valid UTF-8 kept, every other byte and control character escaped."""
    text = data.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() or c == "\t" else f"\\x{ord(c):02x}" for c in text)
