# SPDX-License-Identifier: Apache-2.0
"""operation: look at, wait for or cancel work started with ``wait: false``."""

from __future__ import annotations

import asyncio
from typing import Any

from ..context import Context
from ..durations import format_duration
from ..errors import AgentError

__all__ = ["operation"]


async def operation(ctx: Context) -> dict[str, Any]:
    """Act on the operation ``id``. Waiting for a failed operation fails with that operation's own error."""
    args = ctx.args
    target = ctx.agent.operations.get(args.required_text("id"))
    state = args.choice("state", ("status", "wait", "cancel"), "status")
    timeout = args.optional_seconds("timeout")
    args.finish()
    if state == "cancel":
        canceled = not ctx.check and await target.cancel()
        return {"changed": canceled, "operation": target.describe()}
    if state == "status":
        return {"changed": False, "operation": target.describe()}
    try:
        async with asyncio.timeout(timeout):
            await target.wait(_forward(ctx))
    except TimeoutError:
        raise AgentError(
            "timeout",
            f"operation {target.id} was not done after {format_duration(timeout or 0)}; it runs on",
            {"operation": target.describe()},
        ) from None
    if target.error is not None:
        raise AgentError(target.error.code, target.error.message, {**target.error.data, "operation": target.describe()})
    return {"changed": False, **(target.result or {}), "operation": target.describe()}


def _forward(ctx: Context) -> Any:
    async def forward(event: str, data: dict[str, Any]) -> None:
        await ctx.event(event, **data)

    return forward
