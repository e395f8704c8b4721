# SPDX-License-Identifier: Apache-2.0
"""Text as TFTP's mode netascii sends it: lines end with CR LF, a lone CR is CR NUL (RFC 764)."""

from __future__ import annotations

from typing import Protocol

__all__ = ["NetasciiDecoder", "NetasciiReader", "Source"]

_PIECE = 1 << 16


class Source(Protocol):
    """What a transfer takes its bytes from: exactly ``size`` of them, fewer only at the end."""

    def read(self, size: int) -> bytes | memoryview: ...


class NetasciiReader:
    """The netascii form of what another source gives."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._ready = b""
        self._ended = False

    def read(self, size: int) -> bytes:
        """The next bytes."""
        while len(self._ready) < size and not self._ended:
            piece = bytes(self._source.read(_PIECE))
            self._ended = not piece
            self._ready += piece.replace(b"\r", b"\r\0").replace(b"\n", b"\r\n")
        data, self._ready = self._ready[:size], self._ready[size:]
        return data


class NetasciiDecoder:
    """Turns it back, whatever pieces it comes in."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """The plain bytes of a piece; a CR at its end waits for what follows."""
        data = self._held + data
        self._held = b"\r" if data.endswith(b"\r") else b""
        data = data[: len(data) - len(self._held)]
        return data.replace(b"\r\n", b"\n").replace(b"\r\0", b"\r")

    def finish(self) -> bytes:
        """What still waits at the end."""
        held, self._held = self._held, b""
        return held
