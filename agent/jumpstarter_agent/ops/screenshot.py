# SPDX-License-Identifier: Apache-2.0
"""screenshot: a picture of what the device shows, kept, and compared with what it should show."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..context import Context
from ..durations import format_duration
from ..errors import AgentError
from ..screen import Picture, Screen, find_screen, needs

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["screenshot"]

_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
_HASHES = ("perceptual", "average", "difference", "wavelet")
_PICTURE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class _Wish:
    """What the picture is compared with, and how."""

    reference: Image.Image
    name: str
    region: tuple[int, int, int, int] | None
    hash_name: str
    hash_size: int
    tolerance: int


@dataclass(frozen=True, kw_only=True)
class _Shot:
    """A picture that was taken, and how it compares. distance: None when it was not compared."""

    picture: Picture
    attempts: int
    distance: int | None = None
    bits: int | None = None
    similar: bool = True


async def screenshot(ctx: Context) -> dict[str, Any]:
    """Take pictures until one is like the reference or the time is over; without a reference, one."""
    args = ctx.args
    driver = args.optional_text("driver")
    path, reference = args.optional_text("path"), args.optional_text("reference")
    timeout, interval = args.seconds("timeout", 0.0), args.seconds("interval", 1.0)
    password, online = args.optional_text("vnc_password"), args.flag("require_online", True)
    region = _region(args.mapping("region"))
    hash_name = args.choice("hash", _HASHES, _HASHES[0])
    hash_size, tolerance = args.integer("hash_size", 8), args.integer("tolerance", 6)
    args.finish()
    ending = _ending(path)
    wish = None
    if reference is not None:
        wish = await asyncio.to_thread(_wish, reference, region, hash_name, hash_size, tolerance)
    nodes = (await ctx.lease()).connection.session.nodes
    if driver is not None:
        await ctx.node(driver)  # its error tells which there are
    screen = find_screen(nodes, driver)
    shot = await _until_similar(ctx, screen, wish, timeout, interval, password, online)
    ending = ending or (".jpg" if shot.picture.data is not None else ".png")
    data = await asyncio.to_thread(_encode, shot.picture, ending)
    value = {
        "driver": screen.path,
        "width": shot.picture.image.width,
        "height": shot.picture.image.height,
        "format": _FORMATS[ending].lower(),
        "online": shot.picture.online,
        "attempts": shot.attempts,
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
    }
    if wish is not None:
        value |= {"similar": shot.similar, "distance": shot.distance, "bits": shot.bits}
    if not ctx.request.task.get("no_log"):
        value |= await asyncio.to_thread(_record, ctx, data, ending)
    if not shot.similar:
        assert wish is not None
        # Kept at the wanted place as well: it is what somebody wants to look at now.
        await asyncio.to_thread(_keep, path, data, ctx.check)
        raise AgentError("verify_failed", _unlike(shot, wish, timeout), {**value, "path": path})
    return {"changed": await asyncio.to_thread(_keep, path, data, ctx.check), "path": path, **value}


async def _until_similar(
    ctx: Context,
    screen: Screen,
    wish: _Wish | None,
    timeout: float,
    interval: float,
    password: str | None,
    require_online: bool,
) -> _Shot:
    """Pictures until one fits; the last one when none did in time. Raises the last error when there was no picture."""
    end = time.monotonic() + timeout
    attempts = 0
    told: int | str | None = None  # one line for each change, not for each picture
    while True:
        attempts += 1
        left = end - time.monotonic()
        try:
            picture = await screen.take(
                password, _PICTURE_SECONDS if timeout <= 0 else min(_PICTURE_SECONDS, max(1.0, left))
            )
            if require_online and not picture.online:
                raise AgentError(
                    "unavailable",
                    f"driver {screen.path} gets no picture from the device (no signal); 'require_online: false' takes "
                    "what it shows instead",
                    {"driver": screen.path},
                )
            shot = _Shot(picture=picture, attempts=attempts)
            if wish is not None:
                shot = await asyncio.to_thread(_compare, picture, wish, attempts)
            if shot.similar or time.monotonic() >= end:
                return shot
            if shot.distance != told:
                told = shot.distance
                text = f"the screen differs from {wish.name if wish else ''} by {told} of {shot.bits} bits"
                await ctx.event("note", text, distance=told, bits=shot.bits)
        except Exception as error:
            if time.monotonic() >= end or not _may_pass(error):
                raise
            if str(error) != told:
                told = str(error)
                await ctx.event("note", f"no picture yet: {error}")
        # The pause between two looks at a screen: the user's own figure, not a synchronisation.
        await asyncio.sleep(min(interval, max(0.0, end - time.monotonic())))


def _may_pass(error: Exception) -> bool:
    """Whether the next picture may succeed: a machine that is not on yet, a monitor without signal."""
    from jumpstarter.common.exceptions import DriverError

    if isinstance(error, AgentError):
        return error.code == "unavailable"
    if getattr(error, "final", False):
        return False  # a VNC server that refused the password locks its users out when it is asked on and on
    if isinstance(error, DriverError):
        return error.code not in ("NOT_FOUND", "UNIMPLEMENTED", "INVALID_ARGUMENT", "PERMISSION_DENIED")
    return isinstance(error, (OSError, TimeoutError))


def _wish(
    reference: str, region: tuple[int, int, int, int] | None, hash_name: str, hash_size: int, tolerance: int
) -> _Wish:
    """Everything that can be wrong with the comparison shows before the device is asked for anything."""
    if tolerance < 0:
        raise AgentError("invalid", f"argument 'tolerance' is {tolerance}, it cannot be less than 0 bits")
    with needs("jumpstarter_imagehash"):
        from jumpstarter_imagehash import compare, load_picture

        try:
            picture = load_picture(reference)
            wish = _Wish(
                reference=_part(picture, region, f"reference {reference}"),
                name=os.path.basename(reference),
                region=region,
                hash_name=hash_name,
                hash_size=hash_size,
                tolerance=tolerance,
            )
            compare(wish.reference, wish.reference, hash_name=hash_name, hash_size=hash_size)
        except ValueError as error:
            raise AgentError("invalid", str(error)) from None
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise AgentError("not_found", f"reference {reference} cannot be read: {reason}") from None
    return wish


def _compare(picture: Picture, wish: _Wish, attempts: int) -> _Shot:
    from jumpstarter_imagehash import compare

    # A machine that boots changes its resolution: the next picture may have that region.
    part = _part(picture.image, wish.region, "the device's screen", "unavailable")
    found = compare(part, wish.reference, hash_name=wish.hash_name, hash_size=wish.hash_size)
    return _Shot(
        picture=picture,
        attempts=attempts,
        distance=found.distance,
        bits=found.bits,
        similar=found.distance <= wish.tolerance,
    )


def _unlike(shot: _Shot, wish: _Wish, timeout: float) -> str:
    length = format_duration(timeout) if timeout >= 1 else f"{timeout * 1000:.0f}ms"
    when = f" within {length} ({shot.attempts} pictures)" if timeout > 0 else ""
    return (
        f"the screen did not show {wish.name}{when}: {shot.distance} of {shot.bits} bits of the {wish.hash_name} hash "
        f"differ, {wish.tolerance} may"
    )


def _part(
    image: Image.Image, region: tuple[int, int, int, int] | None, what: str, code: str = "invalid"
) -> Image.Image:
    if region is None:
        return image
    left, top, width, height = region
    if left + width > image.width or top + height > image.height:
        raise AgentError(
            code,
            f"the region {width}x{height} at {left},{top} is outside of {what}, which has {image.width}x{image.height}",
        )
    return image.crop((left, top, left + width, top + height))


def _region(values: dict[str, Any]) -> tuple[int, int, int, int] | None:
    if not values:
        return None
    found = []
    for name, least in (("left", 0), ("top", 0), ("width", 1), ("height", 1)):
        value = values.pop(name, None if least else 0)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise AgentError("invalid", f"argument 'region': {name} is {value!r}, not a whole number from {least} on")
        found.append(value)
    if values:
        raise AgentError("invalid", f"argument 'region': unknown {', '.join(sorted(values))}")
    return found[0], found[1], found[2], found[3]


def _ending(path: str | None) -> str:
    if path is None:
        return ""
    if not os.path.isabs(path):
        raise AgentError("invalid", f"argument 'path' is {path!r}, not an absolute path")
    ending = os.path.splitext(path)[1].lower()
    if ending not in _FORMATS:
        raise AgentError("invalid", f"argument 'path' is {path!r}; a picture's name ends in {', '.join(_FORMATS)}")
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise AgentError("invalid", f"argument 'path': there is no directory {folder}")
    return ending


def _encode(picture: Picture, ending: str) -> bytes:
    """The picture as a file. What came as JPEG stays as it came."""
    kind = _FORMATS[ending]
    if kind == "JPEG" and picture.data is not None and picture.image.format == "JPEG":
        return picture.data
    out = io.BytesIO()
    options = {"quality": 92} if kind == "JPEG" else {}
    picture.image.convert("RGB").save(out, kind, **options)
    return out.getvalue()


def _keep(path: str | None, data: bytes, check: bool) -> bool:
    """Write the file, completely or not at all, unless it is so already. Returns whether it changed (would change)."""
    if path is None:
        return False
    with contextlib.suppress(FileNotFoundError):
        with open(path, "rb") as file:
            if file.read() == data:
                return False
    if not check:
        descriptor, partial = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".screenshot-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.chmod(partial, 0o666 & ~_umask())
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise
    return True


def _umask() -> int:
    """The process's umask; there is no way to read it but from /proc, or by changing it for all threads."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o077


def _record(ctx: Context, data: bytes, ending: str) -> dict[str, Any]:
    """Keep it with what else is recorded about the host; where, if that outlives the agent."""
    run = ctx.agent.recording
    folder = run.directory(ctx.host.name)
    number = 1
    while True:
        name = f"screenshot-{number:03}{ending}"
        try:
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            break
        except FileExistsError:
            number += 1
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    return {"recording": str(folder / name), "screenshot": name} if ctx.host.name in run.kept else {}
