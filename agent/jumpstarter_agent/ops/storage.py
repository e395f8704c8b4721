# SPDX-License-Identifier: Apache-2.0
"""storage: which side a storage mux is connected to, and reading a target back into a file."""

from __future__ import annotations

import os
from typing import Any

from ..context import Context
from ..errors import AgentError
from ..progress import ProgressMeter
from .flash import plain_method

__all__ = ["storage"]

DEFAULT_DRIVER = "storage"
_STATES = ("host", "dut", "off", "status")


async def storage(ctx: Context) -> dict[str, Any]:
    """Connect the storage to ``state``, or copy it into the file ``dump``."""
    args = ctx.args
    driver = args.text("driver", DEFAULT_DRIVER)
    dump, target = args.raw("dump"), args.optional_text("target")
    wanted = args.choice("state", _STATES) if dump is None else None
    args.finish()
    node = await ctx.node(driver)
    if dump is not None:
        return await _dump(ctx, node, dump, target)
    assert wanted is not None
    return await _switch(ctx, node, wanted)


async def _switch(ctx: Context, node: Any, wanted: str) -> dict[str, Any]:
    if wanted != "status":
        plain_method(node, wanted)
    previous = await _state(node)
    if wanted == "status":
        return {"changed": False, "state": previous, "previous": previous}
    changed = previous != wanted
    if changed and not ctx.check:
        await node.call(wanted)
    value: dict[str, Any] = {"changed": changed, "state": wanted, "previous": previous}
    if ctx.request.diff and changed:
        value["diff"] = {"before": f"storage: {previous}\n", "after": f"storage: {wanted}\n"}
    return value


async def _state(node: Any) -> str:
    """ "host", "dut" or "off", "unknown" when the driver cannot tell."""
    for method in ("state", "status"):
        if node.has_method(method):
            return str(await node.call(method))
    return "unknown"


async def _dump(ctx: Context, node: Any, dump: Any, target: str | None) -> dict[str, Any]:
    from jumpstarter.client import imaging

    if isinstance(dump, dict):
        dump, target = dump.get("path"), dump.get("target") or target
    if not isinstance(dump, str) or not os.path.isabs(dump):
        raise AgentError("invalid", f"argument 'dump' is {dump!r}, not an absolute path")
    method = plain_method(node, "dump", "read")
    if ctx.check:
        return {"changed": True, "path": dump, "size": None, "sha256": None, "simulated": True}
    lease = await ctx.lease()
    meter = ProgressMeter(ctx, os.path.basename(dump))
    result = await imaging.dump(node, dump, target=target, progress=meter, where=lease.reach.target, method=method)
    return {"changed": True, **result.as_dict()}
