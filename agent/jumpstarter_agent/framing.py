# SPDX-License-Identifier: Apache-2.0
"""Frames of the agent's socket: 4 bytes length (big endian) and a UTF-8 JSON object of that length."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from .errors import AgentError

__all__ = ["MAX_FRAME", "decode_object", "encode_frame", "read_frame"]

MAX_FRAME = 16 * 1024 * 1024
"""Largest JSON text in bytes, both directions."""

_HEADER = 4


def encode_frame(message: dict[str, Any]) -> bytes:
    """The bytes of one frame. A message over `MAX_FRAME` is an `AgentError` with code "invalid"."""
    body = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    if len(body) > MAX_FRAME:
        raise AgentError("invalid", f"a reply of {len(body)} bytes is over the limit of {MAX_FRAME} bytes")
    return len(body).to_bytes(_HEADER, "big") + body


def decode_object(body: bytes) -> dict[str, Any]:
    """Parse the text of a frame; anything but one JSON object is an `AgentError` with code "invalid"."""
    try:
        value = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise AgentError("invalid", f"request is not UTF-8 JSON: {type(error).__name__}: {error}") from None
    if not isinstance(value, dict):
        raise AgentError("invalid", f"request is a JSON {type(value).__name__}, not an object")
    return value


async def read_frame(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """Read one frame; None when the peer closed before sending anything.

    The length is checked before a byte of the body is awaited, so a hostile length costs no memory.
    """
    try:
        header = await reader.readexactly(_HEADER)
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            return None
        raise AgentError("invalid", f"connection ended after {len(error.partial)} of {_HEADER} header bytes") from None
    size = int.from_bytes(header, "big")
    if size > MAX_FRAME:
        raise AgentError("invalid", f"frame of {size} bytes is over the limit of {MAX_FRAME} bytes")
    try:
        body = await reader.readexactly(size)
    except asyncio.IncompleteReadError as error:
        raise AgentError("invalid", f"connection ended after {len(error.partial)} of {size} bytes") from None
    return decode_object(body)
