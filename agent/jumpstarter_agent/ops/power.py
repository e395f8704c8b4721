# SPDX-License-Identifier: Apache-2.0
"""power: switch the device, idempotent where the driver can tell its state."""

from __future__ import annotations

import asyncio
from typing import Any

from ..consoles import open_consoles
from ..context import Context
from ..errors import AgentError

__all__ = ["off_seconds", "power", "power_status", "set_power"]

DEFAULT_DRIVER = "power"
DEFAULT_CYCLE_SECONDS = 2.0


async def power(ctx: Context) -> dict[str, Any]:
    """Bring the power to ``state``; "status" only tells it."""
    args = ctx.args
    driver = args.text("driver", DEFAULT_DRIVER)
    wanted = args.choice("state", ("on", "off", "cycled", "status"), "on")
    wait = args.optional_seconds("wait")
    args.finish()
    node = await ctx.node(driver)
    _check_is_power(node)
    if wanted == "status":
        state = await power_status(node)
        return {"changed": False, "state": state, "previous": state}
    # Looking and switching are one step: of several tasks that switch on at once, only the first changes something.
    async with (await ctx.lease()).lock("power", node.path):
        return await _bring(ctx, node, wanted, wait)


async def _bring(ctx: Context, node: Any, wanted: str, wait: float | None) -> dict[str, Any]:
    previous = await power_status(node)
    target = "on" if wanted == "cycled" else wanted
    changed = wanted == "cycled" or previous != target
    if changed and not ctx.check:
        await set_power(node, wanted, off_seconds(node) if wait is None else wait)
        await _tell_consoles(ctx, wanted)
    value: dict[str, Any] = {"changed": changed, "state": target, "previous": previous}
    if ctx.request.diff and changed:
        middle = "off, then " if wanted == "cycled" else ""
        value["diff"] = {"before": f"power: {previous}\n", "after": f"power: {middle}{target}\n"}
    return value


async def power_status(node: Any) -> str:
    """ "on", "off", or "unknown" when the driver (an old one, mostly) has no way to tell."""
    if node.methods is None or "status" not in node.methods:
        return "unknown"
    state = await node.call("status")
    return state if state in ("on", "off") else "unknown"


async def set_power(node: Any, wanted: str, wait: float) -> None:
    """Switch "on", "off", or "cycled" with `wait` seconds without power."""
    if wanted != "cycled":
        await node.call(wanted)
        return
    if node.methods is not None and "cycle" in node.methods:
        await node.call("cycle", wait)
        return
    await node.call("off")
    # Time the device needs without power: the user's own figure, not a synchronisation.
    await asyncio.sleep(wait)
    await node.call("on")


def off_seconds(node: Any) -> float:
    """How long the device has to be without power in a cycle: what its driver takes when nobody says."""
    info = (node.methods or {}).get("cycle")
    wait = next((param.default for param in info.params if param.name == "wait"), None) if info is not None else None
    return float(wait) if isinstance(wait, (int, float)) else DEFAULT_CYCLE_SECONDS


async def _tell_consoles(ctx: Context, wanted: str) -> None:
    """Consoles of this host: what waits there for the board need not wait for its timeout."""
    for console in open_consoles(await ctx.lease()):
        if wanted != "on":
            console.notify_power("off")
        if wanted != "off":
            console.notify_power("on")


def _check_is_power(node: Any) -> None:
    if node.methods is not None and not {"on", "off"} <= set(node.methods):
        raise AgentError(
            "invalid",
            f"driver {node.path or 'at the root'} is no power driver: it has no methods on and off",
            {"driver": node.path, "methods": sorted(node.methods)},
        )
