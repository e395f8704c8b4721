# SPDX-License-Identifier: Apache-2.0
"""flash: an image onto a target of a storage driver, with progress."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ..context import Context
from ..errors import AgentError
from ..json_values import to_json
from ..progress import ProgressMeter

__all__ = ["flash", "plain_method"]

DEFAULT_DRIVER = "storage"
_COMPRESSIONS = ("auto", "none", "gzip", "xz", "bz2", "bzip2", "zstd")


async def flash(ctx: Context) -> dict[str, Any]:
    """Write ``src`` to ``target`` unless it is there already."""
    args = ctx.args
    driver = args.text("driver", DEFAULT_DRIVER)
    source = args.required_text("src")
    options: dict[str, Any] = {
        "target": args.optional_text("target"),
        "verify": args.flag("verify", True),
        "force": args.flag("force"),
        "checksum": args.optional_text("checksum"),
        "compression": args.choice("compression", _COMPRESSIONS, "auto"),
        "check": ctx.check,
    }
    args.finish()
    if options["compression"] == "bzip2":
        options["compression"] = "bz2"
    if "://" not in source:
        await asyncio.to_thread(_check_readable, source)
    elif not source.lower().startswith(("http://", "https://", "oci://")):
        kinds = "files, http://, https:// and oci:// addresses"
        raise AgentError("invalid", f"image {source}: only {kinds} can be flashed")
    node = await ctx.node(driver)
    lease = await ctx.lease()
    from jumpstarter.client import imaging

    meter = ProgressMeter(ctx, Path(source).name)
    result = await imaging.flash(
        node,
        source,
        progress=meter,
        where=lease.reach.target,
        method=plain_method(node, "flash", "write"),
        **options,
    )
    value: dict[str, Any] = to_json(result)
    if value.get("changed") and not ctx.check:
        # A new image has new host keys; what the old one showed would make ssh refuse it.
        lease.known_hosts.unlink(missing_ok=True)
    if ctx.request.diff and value.get("changed"):
        name = value.get("target") or options["target"] or driver
        value["diff"] = {"before": f"{name}: other content\n", "after": f"{name}: sha256 {value.get('sha256')}\n"}
    return value


def _check_readable(source: str) -> None:
    if not Path(source).is_absolute():
        raise AgentError("invalid", f"image {source!r} is not an absolute path")
    try:
        with open(source, "rb"):
            pass
    except OSError as error:
        code = "not_found" if isinstance(error, FileNotFoundError) else "invalid"
        raise AgentError(code, f"image {source}: {error.strerror}; nothing was written") from error


def plain_method(node: Any, *names: str) -> str:
    """The first of these methods that the driver has; the first for a peer that does not describe its drivers."""
    if node.methods is None:
        return names[0]
    for name in names:
        if name in node.methods:
            return name
    raise AgentError(
        "invalid",
        f"driver {node.path or 'at the root'} is no storage that can {names[0]}: it has no method {names[0]}",
        {"driver": node.path, "methods": sorted(node.methods)},
    )
