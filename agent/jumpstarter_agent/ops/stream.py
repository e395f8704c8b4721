# SPDX-License-Identifier: Apache-2.0
"""stream: the connection becomes a byte stream of a driver (ssh, anything that listens on the device)."""

from __future__ import annotations

from ..context import Context
from ..relay import relay

__all__ = ["stream"]


async def stream(ctx: Context) -> None:
    """Open the driver's stream, answer "ready", then copy raw bytes until one side is done."""
    driver = ctx.args.required_text("driver")
    method = ctx.args.text("method", "connect")
    ctx.args.finish()
    node = await ctx.node(driver)
    async with node.stream(method) as opened:
        await ctx.peer.ready({"driver": driver, "method": method})
        await relay(ctx.peer, opened)
