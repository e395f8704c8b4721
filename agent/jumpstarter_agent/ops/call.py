# SPDX-License-Identifier: Apache-2.0
"""call: any exported method of any driver."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from jumpstarter.common.exceptions import DriverError

from ..context import Context
from ..errors import AgentError
from ..json_values import to_json

__all__ = ["call"]

DEFAULT_MAX_ITEMS = 1000


async def call(ctx: Context) -> dict[str, Any]:
    """Call a method; a streaming method's items become a list of at most ``max_items``."""
    args = ctx.args
    driver = args.text("driver")
    method = args.required_text("method")
    positional = [_from_json(value) for value in args.items("args")]
    named = {name: _from_json(value) for name, value in args.mapping("kwargs").items()}
    max_items = args.integer("max_items", DEFAULT_MAX_ITEMS)
    args.finish()
    if max_items < 1:
        raise AgentError("invalid", f"argument 'max_items' is {max_items}, it has to be at least 1")
    node = await ctx.node(driver)
    info = _method_info(node, method)
    readonly = info is not None and info.readonly
    if ctx.check and not readonly:
        return {"changed": True, "value": None, "simulated": True}
    if info is not None and info.kind == "stream":
        return {"changed": not readonly, **await _collect(node, method, positional, named, max_items)}
    try:
        value = await node.call(method, *positional, **named)
    except DriverError as error:
        if info is not None or not _is_streaming(error):
            raise
        # Refused before anything was done, so it can be asked again the other way.
        return {"changed": True, **await _collect(node, method, positional, named, max_items)}
    return {"changed": not readonly, "value": to_json(value)}


def _is_streaming(error: DriverError) -> bool:
    """Whether Jumpstarter 0.9, which does not describe its drivers, says that the method is no plain call."""
    return error.code == "NOT_FOUND" and "missing marker" in (error.details or "")


async def _collect(
    node: Any, method: str, positional: list[Any], named: dict[str, Any], max_items: int
) -> dict[str, Any]:
    items: list[Any] = []
    stream = node.streamingcall(method, *positional, **named)
    truncated = False
    try:
        async for item in stream:
            if len(items) == max_items:
                truncated = True
                break
            items.append(to_json(item))
    finally:
        await stream.aclose()
    return {"value": items, "truncated": truncated}


def _method_info(node: Any, method: str) -> Any:
    """What the exporter says about the method; None when it is a peer that does not describe its drivers."""
    if node.methods is None:
        return None
    info = node.methods.get(method)
    if info is None:
        names = sorted(node.methods)
        raise AgentError(
            "not_found",
            f"driver {node.path or 'at the root'} has no method {method!r}; it has: {', '.join(names) or 'none'}",
            {"driver": node.path, "method": method, "methods": names},
        )
    if info.kind == "bytes":
        raise AgentError(
            "invalid",
            f"method {method!r} of driver {node.path} is a byte stream: use forward or stream, not call",
            {"driver": node.path, "method": method},
        )
    return info


def _from_json(value: Any) -> Any:
    """Undo `to_json` for bytes, at any depth."""
    if isinstance(value, dict):
        if set(value) == {"base64"} and isinstance(value["base64"], str):
            try:
                return base64.b64decode(value["base64"], validate=True)
            except binascii.Error as error:
                raise AgentError("invalid", f"{value['base64']!r} is not base64: {error}") from None
        return {key: _from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    return value
