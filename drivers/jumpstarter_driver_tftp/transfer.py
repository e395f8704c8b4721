# SPDX-License-Identifier: Apache-2.0
"""One file to or from a client, block by block, several at a time when it asked for a window."""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING, Final

from jumpstarter_driver_tftp.link import Link
from jumpstarter_driver_tftp.netascii import NetasciiDecoder, Source
from jumpstarter_driver_tftp.packets import BLOCKS, Code, Opcode, Options, ProtocolError, ack, oack

if TYPE_CHECKING:
    from jumpstarter_driver_opendal.files import LocalFile

__all__ = ["AheadReader", "finish_receiving", "receive_file", "send_file"]

_AHEAD: Final = 1 << 20
_DATA: Final = struct.Struct("!HH")
_ACK: Final = struct.pack("!H", Opcode.ACK)
_DATA_OPCODE: Final = struct.pack("!H", Opcode.DATA)

_Packet = tuple[bytes, bytes | memoryview]


class AheadReader:
    """Reads a file in large pieces and gives small ones without copying."""

    def __init__(self, file: LocalFile) -> None:
        self._file = file
        self._piece = memoryview(b"")

    def read(self, size: int) -> bytes | memoryview:
        """Exactly ``size`` bytes, fewer only at the end."""
        if len(self._piece) >= size:
            data, self._piece = self._piece[:size], self._piece[size:]
            return data
        parts = bytes(self._piece)
        while len(parts) < size:
            piece = self._file.read_now(max(_AHEAD, size))
            if not piece:
                self._piece = memoryview(b"")
                return parts
            missing = size - len(parts)
            parts += piece[:missing]
            self._piece = memoryview(piece)[missing:]
        return parts


def send_file(link: Link, source: Source, options: Options) -> int:
    """Send all of ``source``; gives the number of bytes. Raises ClientGone, ProtocolError, Stopped."""
    if options.accepted:
        _await_ack_of_options(link, options)
    window: deque[_Packet] = deque()
    base = 0  # the last block that was acknowledged, not wrapped
    total = 0
    ended = False
    while True:
        while len(window) < options.windowsize and not ended:
            data = source.read(options.blksize)
            ended = len(data) < options.blksize
            total += len(data)
            window.append((_DATA.pack(Opcode.DATA, (base + len(window) + 1) % BLOCKS), data))
        if not window:
            return total
        _send_window(link, window)
        link.sent()
        done = _await_ack(link, window, base, options.windowsize)
        # what of the window follows the acknowledged block was lost and goes out again with the next one
        for _ in range(done):
            window.popleft()
        base += done


def _send_window(link: Link, window: deque[_Packet]) -> None:
    for packet in window:
        link.send(*packet)


def _await_ack(link: Link, window: deque[_Packet], base: int, windowsize: int) -> int:
    """How many packets of the window the client has."""
    restarted = False
    while True:
        packet = link.receive()
        if packet is None:
            _send_window(link, window)
            continue
        if len(packet) < 4 or packet[:2] != _ACK:
            continue
        (number,) = struct.unpack_from("!H", packet, 2)
        done: int = (number - base) % BLOCKS
        if 1 <= done <= len(window):
            link.progressed(lost=done < len(window))
            return done
        if done == 0 and windowsize > 1 and not restarted:
            # The client asks for the window again: its first block was lost. That is answered once. To each further
            # copy, and always in lockstep, an answer would double every packet from here on (RFC 1123, 4.2.3.1).
            restarted = True
            _send_window(link, window)


def _await_ack_of_options(link: Link, options: Options) -> None:
    packet = oack(options)
    link.send(packet)
    link.sent()
    while True:
        answer = link.receive()
        if answer is None:
            link.send(packet)
        elif answer[:4] == ack(0):
            link.progressed()
            return


def receive_file(link: Link, target: LocalFile, options: Options, *, netascii: bool) -> tuple[int, int]:
    """Take all that the client sends; gives the numbers of bytes written and of blocks.

    Raises ClientGone, ProtocolError, Stopped. The caller commits the file and then calls `finish_receiving`.
    """
    decoder = NetasciiDecoder() if netascii else None
    last = oack(options) if options.accepted else ack(0)
    expected, in_window, total = 1, 0, 0
    asked = -1
    link.send(last)
    link.sent()
    while True:
        packet = link.receive(options.blksize + 4)
        if packet is None:
            last = ack(expected - 1) if expected > 1 else last
            link.send(last)
            in_window, asked = 0, -1
            continue
        if len(packet) < 4 or packet[:2] != _DATA_OPCODE:
            continue
        (number,) = struct.unpack_from("!H", packet, 2)
        if number != expected % BLOCKS:
            # a gap: ask once for what comes after the last good block; an old block says the same again, once
            if asked != expected and (options.windowsize > 1 or number == (expected - 1) % BLOCKS):
                asked = expected
                link.send(ack(expected - 1) if expected > 1 else last)
                in_window = 0
            continue
        data = packet[4:]
        link.progressed()
        plain = decoder.feed(data) if decoder else data
        if plain:
            target.write_now(plain)
            total += len(plain)
        expected += 1
        in_window += 1
        if len(data) < options.blksize:
            if decoder and (rest := decoder.finish()):
                target.write_now(rest)
                total += len(rest)
            if options.tsize is not None and not netascii and total != options.tsize:
                raise ProtocolError(Code.UNDEFINED, f"{total} bytes came, {options.tsize} were announced")
            return total, expected - 1
        if in_window >= options.windowsize:
            in_window = 0
            link.send(ack(expected - 1))
            link.sent()


def finish_receiving(link: Link, blocks: int) -> None:
    """Acknowledge the last block, and again while the client repeats it: the acknowledgement may have been lost."""
    last = ack(blocks)
    link.send(last)
    link.wait_for_silence(lambda packet: link.send(last) if packet[:2] == _DATA_OPCODE else None)
