# SPDX-License-Identifier: Apache-2.0
"""ping and shutdown: about the agent itself."""

from __future__ import annotations

import os
from typing import Any

from ..context import Context

__all__ = ["ping", "shutdown"]


async def ping(ctx: Context) -> dict[str, Any]:
    """Tell that the agent is there and what it holds."""
    ctx.args.finish()
    agent = ctx.agent
    return {
        "changed": False,
        "pid": os.getpid(),
        "hosts": sorted(agent.leases.held),
        "directory": str(agent.place.directory),
        "holder": agent.place.holder,
    }


async def shutdown(ctx: Context) -> None:
    """End the agent once this request is answered."""
    ctx.args.finish()
    # Answered by hand: the agent cancels what is unanswered when it ends.
    await ctx.peer.result({"changed": True})
    ctx.agent.stop("asked to shut down")
