# SPDX-License-Identifier: Apache-2.0
"""gpio: bring a line into a state, read it, wait for it. Idempotent where the driver can read the line."""

from __future__ import annotations

from typing import Any

from jumpstarter.common.exceptions import DriverMethodNotImplemented

from ..context import Context
from ..errors import AgentError

__all__ = ["gpio"]

DEFAULT_DRIVER = "gpio"
_WAIT_SECONDS = 30.0
_STATES = ("on", "off", "read")
_WAITS = ("active", "inactive", "rising", "falling")


async def gpio(ctx: Context) -> dict[str, Any]:
    """Bring the line to ``state``, or wait for ``wait_for``."""
    args = ctx.args
    driver = args.text("driver", DEFAULT_DRIVER)
    wait_for = args.optional_text("wait_for")
    wanted = args.choice("state", _STATES, "read") if wait_for is None else None
    timeout = args.seconds("timeout", _WAIT_SECONDS)
    args.finish()
    node = await ctx.node(driver)
    if wait_for is not None:
        if wait_for not in _WAITS:
            raise AgentError("invalid", f"argument 'wait_for' is {wait_for!r}; choose one of {', '.join(_WAITS)}")
        return await _wait(ctx, node, wait_for, timeout)
    if wanted == "read":
        state = await _state(node)
        if state == "unknown":
            raise AgentError("invalid", f"driver {node.path} cannot read its line", {"driver": node.path})
        return {"changed": False, "state": state, "previous": state}
    assert wanted is not None
    _needs(node, wanted)
    # Looking and setting are one step: of several tasks that set the line, only the first changes something.
    async with (await ctx.lease()).lock("gpio", node.path):
        return await _bring(ctx, node, wanted)


async def _bring(ctx: Context, node: Any, wanted: str) -> dict[str, Any]:
    previous = await _state(node)
    changed = previous != wanted
    if changed and not ctx.check:
        await node.call(wanted)
    value: dict[str, Any] = {"changed": changed, "state": wanted, "previous": previous}
    if ctx.request.diff and changed:
        value["diff"] = {"before": f"{node.path}: {previous}\n", "after": f"{node.path}: {wanted}\n"}
    return value


async def _wait(ctx: Context, node: Any, wait_for: str, timeout: float) -> dict[str, Any]:
    method = f"wait_for_{wait_for}" if wait_for in ("active", "inactive") else "wait_for_edge"
    _needs(node, method)
    if ctx.check:
        # What would make the line move was not done either.
        return {"changed": False, "state": "unknown", "simulated": True}
    await node.call(method, *([wait_for] if method == "wait_for_edge" else []), timeout)
    return {"changed": False, "state": "on" if wait_for in ("active", "rising") else "off"}


async def _state(node: Any) -> str:
    """ "on", "off", or "unknown" when the driver cannot read its line."""
    if node.methods is not None and not {"read_pin", "status"} & set(node.methods):
        return "unknown"
    method = "status" if node.methods is not None and "read_pin" not in node.methods else "read_pin"
    try:
        value = await node.call(method)
    except DriverMethodNotImplemented:
        return "unknown"  # of Jumpstarter 0.9, whose drivers are not described
    if method == "status":
        return value if value in ("on", "off") else "unknown"
    return "on" if value else "off"


def _needs(node: Any, method: str) -> None:
    if node.methods is not None and method not in node.methods:
        raise AgentError(
            "invalid",
            f"driver {node.path or 'at the root'} is no line that can do this: it has no method {method}",
            {"driver": node.path, "methods": sorted(node.methods)},
        )
