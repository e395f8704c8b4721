# SPDX-License-Identifier: Apache-2.0
"""recording: what the callback plugin tells the agent about the run, and where the recordings are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..context import Context

__all__ = ["recording"]


async def recording(ctx: Context) -> dict[str, Any]:
    """Take note of ``event``; every reply names the recording directory of each host."""
    event = ctx.args.required_text("event")
    data = ctx.args.mapping("data")
    ctx.args.finish()
    run = ctx.agent.recording
    run.has_callback = True
    if event == "run_start" and data.get("dir"):
        run.set_root(Path(str(data["dir"])))
    if event == "play_start":
        await ctx.agent.leases.release_of_other_plays(_text(data.get("play_uuid") or data.get("play")))
    host = ctx.request.host.name if ctx.request.host is not None else _text(data.get("host"))
    if host is not None:
        run.event(host, event, **{key: value for key, value in data.items() if key not in ("t", "event", "host")})
        if _is_failure(data):
            run.failed_hosts.add(host)
    value: dict[str, Any] = {"changed": False, "recording_dirs": run.directories}
    if event == "run_end":
        value["hosts"] = {
            name: {"recording_dir": path, "files": run.files(name)} for name, path in run.directories.items()
        }
        value["held"] = ctx.agent.announce_held(bool(data.get("failed")))
    return value


def _is_failure(data: dict[str, Any]) -> bool:
    failed = data.get("failed") is True or data.get("status") in ("failed", "unreachable")
    return failed and not data.get("ignored") and not data.get("rescued")


def _text(value: Any) -> str | None:
    return str(value) if value else None
