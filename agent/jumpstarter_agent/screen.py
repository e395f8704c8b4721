# SPDX-License-Identifier: Apache-2.0
"""Where a device's picture comes from: a video driver, or a VNC server at the end of a driver's stream."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import AgentError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Picture", "Screen", "find_screen", "needs"]

_VIDEO_CLIENTS = ("jumpstarter_driver_video.", "jumpstarter_driver_ustreamer.")
_VNC_CLIENT = "jumpstarter_driver_vnc."
_LARGEST_PICTURE = 64 << 20
_FORMATS = ("JPEG", "PNG")


@dataclass(frozen=True)
class Picture:
    """One picture. data: the file as it came, when it came as one (JPEG). online: what the source says of its input."""

    image: Image.Image
    data: bytes | None
    online: bool


class Screen:
    """A driver that can be asked for pictures. node: the driver; vnc: whether RFB is spoken on its stream."""

    def __init__(self, node: Any, path: str, vnc: bool) -> None:
        self.path = path
        self._node = node
        self._vnc = vnc

    async def take(self, password: str | None, seconds: float) -> Picture:
        """A picture. seconds: how long it may take. Raises DriverError, ConnectionError or TimeoutError."""
        if self._vnc:
            return await self._from_vnc(password, seconds)
        try:
            async with asyncio.timeout(seconds):
                online = await self._online()
                data = await self._jpeg()
        except TimeoutError:
            raise TimeoutError(f"driver {self.path} gave no picture within {seconds:g} s") from None
        return Picture(await asyncio.to_thread(_decode, data, self.path), data, online)

    async def _from_vnc(self, password: str | None, seconds: float) -> Picture:
        with needs("jumpstarter_driver_vnc"):
            from jumpstarter_driver_vnc.rfb import snapshot

            async with self._node.stream("connect") as stream:
                screen = await snapshot(stream, password=password, timeout=seconds)
            return Picture(await asyncio.to_thread(screen.image), None, True)

    async def _online(self) -> bool:
        """Whether the source has a signal: without one, ustreamer gives a picture that says so."""
        if self._node.methods is not None and not self._node.has_method("state"):
            return True
        state = await self._node.call("state")
        if isinstance(state, dict):
            source = state.get("result", {}).get("source", state)  # 0.9 knows no other place
            return bool(state.get("online", source.get("online", True)))
        return True

    async def _jpeg(self) -> bytes:
        if self._node.has_method("snapshot_stream"):
            return await _read_all(self._node.stream("snapshot_stream"))
        value = await self._node.call("snapshot")
        try:
            return base64.b64decode(value, validate=True)
        except (TypeError, ValueError, binascii.Error):
            raise AgentError("driver_error", f"driver {self.path}: snapshot returned no base64 picture") from None


def find_screen(nodes: dict[str, Any], path: str | None) -> Screen:
    """The screen at `path`; without one, the only screen that the exporter has. `AgentError` lists what there is."""
    if path is not None:
        found = _screen(nodes[path])
        if found is None:
            raise AgentError(
                "invalid",
                f"driver {path or 'at the root'} has no screen: it is no video, VNC or network driver",
                {"driver": path},
            )
        return found
    screens: dict[str, Screen] = {}
    for each in nodes.values():
        found = _screen(each) if not _is_network(each) else None
        if found is not None:
            screens.setdefault(found._node.uuid, found)
    if len(screens) == 1:
        return next(iter(screens.values()))
    names = sorted(screen.path for screen in screens.values())
    if not names:
        raise AgentError("not_found", "the exporter has no driver with a screen; name its VNC network driver, if any")
    raise AgentError("invalid", f"the exporter has several screens, say which by 'driver': {', '.join(names)}")


def _screen(node: Any) -> Screen | None:
    client = node.client_class
    if client.startswith(_VIDEO_CLIENTS) or (node.has_method("snapshot") and node.driver_type == "video"):
        return Screen(node, node.path, False)
    if client.startswith(_VNC_CLIENT):
        return _child(node, "tcp")
    if "vnc" in node.children and _is_network(node.children["vnc"]):
        return _child(node, "vnc")  # a virtual machine
    return Screen(node, node.path, True) if _is_network(node) else None


def _child(node: Any, name: str) -> Screen | None:
    return Screen(node.children[name], node.path or name, True) if name in node.children else None


def _is_network(node: Any) -> bool:
    return str(node.client_class).startswith("jumpstarter_driver_network.")


class needs:
    """Turns an import that fails in the block into an `AgentError` with the command that installs what is missing."""

    def __init__(self, package: str) -> None:
        self._package = package

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, ImportError):
            from jumpstarter.common.extras import install_command

            command = install_command(self._package)
            raise AgentError(
                "invalid", f"{error}" + (f"; install it on the control node: {command}" if command else "")
            ) from error


def _decode(data: bytes, path: str) -> Image.Image:
    with needs("jumpstarter_driver_video"):
        from PIL import Image, UnidentifiedImageError

    try:
        # What a device sends chooses its decoder: only those that cameras need, not one that runs Ghostscript.
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        image.load()
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise AgentError("driver_error", f"driver {path} gave {len(data)} bytes that are no picture: {error}") from None
    return image


async def _read_all(opening: Any) -> bytes:
    from anyio import EndOfStream

    data = bytearray()
    async with opening as stream:
        try:
            while True:
                data += await stream.receive()
                if len(data) > _LARGEST_PICTURE:
                    raise AgentError("driver_error", f"the picture has more than {_LARGEST_PICTURE >> 20} MiB")
        except EndOfStream:
            return bytes(data)
