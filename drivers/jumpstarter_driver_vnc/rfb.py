# SPDX-License-Identifier: Apache-2.0
"""One picture of a VNC server's screen, over any byte stream.

The Remote Framebuffer protocol of RFC 6143, as little of it as a picture needs: version 3.3, 3.7 or 3.8, no security
or VNC authentication, true colour, raw rectangles. The libraries there are do not fit: asyncvnc is GPL, vncdotool runs
in Twisted's reactor, and both want to open the connection themselves.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anyio import BrokenResourceError, EndOfStream

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Framebuffer", "RfbError", "RfbRefused", "snapshot"]

_NO_SECURITY, _VNC_AUTHENTICATION = 1, 2
_RAW, _DESKTOP_SIZE = 0, -223
# 32 bits a pixel, 24 of them used, little endian, true colour, 8 bits each: in memory blue, green, red, a spare byte.
_PIXELS = struct.pack(">BBBBHHHBBBxxx", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
_LARGEST_SIDE = 16384
#: 8K is half of it. The server says the size before it has sent anything.
_MOST_PIXELS = 1 << 26
_LARGEST_TEXT = 1 << 20


class RfbError(ConnectionError):
    """The server refused, or what it sent is no RFB. final: asking again the same way cannot help."""

    final = False


class RfbRefused(RfbError):
    """The server lets nobody in this way: a wrong password or none, a kind of security that is not known here."""

    final = True


@dataclass(frozen=True)
class Framebuffer:
    """A picture: width, height, and its pixels (blue, green, red, nothing: one byte each) from the top left on."""

    width: int
    height: int
    pixels: bytes
    name: str = ""

    def image(self) -> Image.Image:
        """The picture for Pillow."""
        from PIL import Image

        return Image.frombuffer("RGB", (self.width, self.height), self.pixels, "raw", "BGRX", 0, 1)


async def snapshot(stream: Any, *, password: str | None = None, timeout: float = 30.0) -> Framebuffer:
    """The screen at this moment. `stream`: an anyio stream just connected to the server; it stays open.

    password: for servers that want VNC authentication. timeout: seconds for everything.

    Raises RfbError when the server refuses or is none, TimeoutError when it does not answer.
    """
    try:
        async with asyncio.timeout(timeout):
            return await _Session(stream).picture(password)
    except TimeoutError:
        raise TimeoutError(f"VNC: the server sent no complete picture within {timeout:g} s") from None
    except (EndOfStream, BrokenResourceError) as error:
        raise RfbError(f"VNC: the server closed the connection{f': {error}' if str(error) else ''}") from error


class _Session:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def picture(self, password: str | None) -> Framebuffer:
        await self._authenticate(await self._agree_on_version(), password)
        await self._stream.send(b"\x01")  # shared: others stay connected
        width, height = struct.unpack(">HH", (await self._read(4)))
        await self._read(16)  # the server's own pixel format
        name = (await self._text()).decode(errors="replace")
        encodings = struct.pack(">BxHii", 2, 2, _RAW, _DESKTOP_SIZE)
        await self._stream.send(b"\x00\0\0\0" + _PIXELS + encodings)
        return await self._update(width, height, name)

    async def _agree_on_version(self) -> int:
        line = await self._read(12)
        if not line.startswith(b"RFB ") or not line.endswith(b"\n"):
            raise RfbError(f"VNC: what answers is no VNC server, it says {line!r}")
        # 3.5 and the like are to be treated as 3.3; newer ones (Apple's 3.889, 4.1) speak 3.8.
        major, minor = (int(part) if part.isdigit() else 0 for part in (line[4:7], line[8:11]))
        chosen = 8 if (major, minor) >= (3, 8) else 7 if (major, minor) == (3, 7) else 3
        await self._stream.send(b"RFB 003.%03d\n" % chosen)
        return chosen

    async def _authenticate(self, version: int, password: str | None) -> None:
        kind = await self._security(version, password)
        if kind == _VNC_AUTHENTICATION:
            challenge = await self._read(16)
            assert password is not None
            await self._stream.send(_response(password, challenge))
        if kind == _VNC_AUTHENTICATION or version >= 8:
            (result,) = struct.unpack(">I", await self._read(4))
            if result:
                why = (await self._text()).decode(errors="replace") if version >= 8 else "authentication failed"
                raise RfbRefused(f"VNC: the server refused: {why}")

    async def _security(self, version: int, password: str | None) -> int:
        """The kind of security to use, agreed with the server."""
        if version < 7:
            (kind,) = struct.unpack(">I", await self._read(4))
            offered = [kind] if kind else []
        else:
            offered = list(await self._read((await self._read(1))[0]))
        if not offered:
            raise RfbError(f"VNC: the server refused: {(await self._text()).decode(errors='replace')}")
        if _NO_SECURITY in offered:
            chosen = _NO_SECURITY
        elif _VNC_AUTHENTICATION in offered and password is not None:
            chosen = _VNC_AUTHENTICATION
        elif _VNC_AUTHENTICATION in offered:
            raise RfbRefused("VNC: the server wants a password, and none was given")
        else:
            kinds = ", ".join(map(str, offered))
            raise RfbRefused(f"VNC: the server wants security of kind {kinds}; known are 1 and 2")
        if version >= 7:
            await self._stream.send(bytes([chosen]))
        return chosen

    async def _update(self, width: int, height: int, name: str) -> Framebuffer:
        """Ask for the whole screen until a whole one has come: a server may send it in pieces, and its size changes."""
        screen = _Screen(width, height)
        await self._ask(screen)
        while not screen.complete:
            # What is in the buffer needs no waiting for: a server that floods must not keep the loop from the timeout.
            await asyncio.sleep(0)
            kind = (await self._read(1))[0]
            if kind == 0:
                size = screen.size
                await self._rectangles(screen)
                if not screen.complete:
                    # An answer may hold a part only. The rest has changed since, as the server sees it.
                    await self._ask(screen, changes=screen.size == size)
            else:
                await self._skip(kind)
        return Framebuffer(screen.width, screen.height, bytes(screen.pixels), name)

    async def _ask(self, screen: _Screen, *, changes: bool = False) -> None:
        await self._stream.send(struct.pack(">BBHHHH", 3, changes, 0, 0, screen.width, screen.height))

    async def _rectangles(self, screen: _Screen) -> None:
        (count,) = struct.unpack(">xH", await self._read(3))
        for _ in range(count):
            x, y, width, height, encoding = struct.unpack(">HHHHi", await self._read(12))
            if encoding == _DESKTOP_SIZE:
                screen.resize(width, height)
            elif encoding == _RAW:
                await screen.fill(x, y, width, height, self._read)
            else:
                raise RfbError(f"VNC: the server sent encoding {encoding}, which it was not asked for")

    async def _skip(self, kind: int) -> None:
        """Messages that say nothing about the picture."""
        if kind == 1:  # colour map
            (count,) = struct.unpack(">xxxH", await self._read(5))
            await self._read(6 * count)
        elif kind == 3:  # clipboard
            await self._read(3)
            await self._text()
        elif kind != 2:  # bell
            raise RfbError(f"VNC: the server sent a message of kind {kind}, which it was not asked for")

    async def _text(self) -> bytes:
        (length,) = struct.unpack(">I", await self._read(4))
        if length > _LARGEST_TEXT:
            raise RfbError(f"VNC: the server announces a text of {length} bytes")
        return await self._read(length)

    async def _read(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._buffer += await self._stream.receive()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data


class _Screen:
    """Pixels, and which of them have arrived."""

    def __init__(self, width: int, height: int) -> None:
        self.width = self.height = 0
        self.pixels = bytearray()
        self.resize(width, height)

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    @property
    def complete(self) -> bool:
        return b"\0" not in self._arrived

    def resize(self, width: int, height: int) -> None:
        sides = 0 < width <= _LARGEST_SIDE and 0 < height <= _LARGEST_SIDE
        if not sides or width * height > _MOST_PIXELS:
            raise RfbError(f"VNC: the server's screen is {width}x{height}")
        self.width, self.height = width, height
        self.pixels = bytearray(4 * width * height)
        self._arrived = bytearray(width * height)

    async def fill(self, x: int, y: int, width: int, height: int, read: Callable[[int], Awaitable[bytes]]) -> None:
        if x + width > self.width or y + height > self.height:
            raise RfbError(f"VNC: a rectangle {width}x{height} at {x},{y} is outside of the screen")
        for line in range(y, y + height if width else y):
            at = line * self.width + x
            self.pixels[4 * at : 4 * (at + width)] = await read(4 * width)
            self._arrived[at : at + width] = b"\1" * width


def _response(password: str, challenge: bytes) -> bytes:
    """The challenge encrypted with DES (RFC 6143, 7.2.2); each byte of the key has its bits in reverse order."""
    from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
    from cryptography.hazmat.primitives.ciphers import Cipher, modes

    key = bytes(int(f"{byte:08b}"[::-1], 2) for byte in password.encode()[:8].ljust(8, b"\0"))
    encryptor = Cipher(TripleDES(key * 3), modes.ECB()).encryptor()
    return encryptor.update(challenge) + encryptor.finalize()
