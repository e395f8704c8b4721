# SPDX-License-Identifier: Apache-2.0
"""http and tftp: files on a server of the exporter, and whether it runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from ..context import Context
from ..errors import AgentError
from ..progress import ProgressMeter

__all__ = ["http", "tftp"]

_STATES = ("started", "stopped", "status")


async def http(ctx: Context) -> dict[str, Any]:
    """Bring a HTTP server and its files to what the request says."""
    return await _serve(ctx, "http")


async def tftp(ctx: Context) -> dict[str, Any]:
    """Bring a TFTP server and its files to what the request says."""
    return await _serve(ctx, "tftp")


async def _serve(ctx: Context, kind: str) -> dict[str, Any]:
    args = ctx.args
    driver = args.text("driver", kind)
    wanted = args.choice("state", _STATES, "started")
    files = [_file(entry) for entry in args.items("files")]
    absent = [_path(path, "absent") for path in args.items("absent")]
    args.finish()
    if wanted == "status" and (files or absent):
        raise AgentError("invalid", "state status changes nothing: give files and absent with another state")
    for file in files:
        await asyncio.to_thread(_check_readable, file["src"])
    node = await ctx.node(driver)
    storage = _storage(node)
    # Two tasks of one play must not put and start at the same time.
    async with (await ctx.lease()).lock("serving", node.path):
        before = await _status(node)
        stored = [await _put(ctx, storage, file) for file in files]
        removed = [path for path in absent if await _remove(ctx, storage, path)]
        changed = await _bring(ctx, node, wanted, before)
        after = before if ctx.check else await _status(node)
    running = {"started": True, "stopped": False, "status": after["running"]}[wanted]
    value = {
        **after,
        "running": running,
        "files": [_described(kind, after, entry) for entry in stored],
        "removed": removed,
        "changed": changed or bool(removed) or any(entry["changed"] for entry in stored),
    }
    if kind == "tftp":
        del value["url"]
    elif not running:
        value["url"] = None
    if ctx.request.diff and value["changed"]:
        value["diff"] = _diff(kind, before["running"], running, stored, removed)
    return value


def _file(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict) or not isinstance(entry.get("src"), str):
        raise AgentError("invalid", f"argument 'files' holds {entry!r}, not a mapping with src")
    src = entry["src"]
    # only addresses have queries; that of a host alone has no name to take
    last = urlsplit(src).path if "://" in src else src
    dest = _path(entry.get("dest") or last.rpartition("/")[2], f"dest of file {src}")
    return {"src": src, "dest": dest, "checksum": entry.get("checksum")}


def _path(path: Any, what: str) -> str:
    """A path of the storage, never the storage itself: an empty variable must not remove all files."""
    clean = str(path).lstrip("/")
    if not clean.strip("./"):
        raise AgentError("invalid", f"argument {what}: {str(path)!r} names no file")
    return clean


def _check_readable(source: str) -> None:
    if "://" in source:
        if not source.lower().startswith(("http://", "https://")):
            raise AgentError("invalid", f"{source}: only files, http:// and https:// addresses can be served")
        return
    if not Path(source).is_absolute():
        raise AgentError("invalid", f"file {source!r} is not an absolute path")
    try:
        with open(source, "rb"):
            pass
    except OSError as error:
        code = "not_found" if isinstance(error, FileNotFoundError) else "invalid"
        raise AgentError(code, f"file {source}: {error.strerror}; nothing was changed") from error


def _storage(node: Any) -> Any:
    storage = node.children.get("storage")
    known = node.methods is None or {"start", "stop", "get_host", "get_port"} <= set(node.methods)
    if storage is None or not known:
        where = node.path or "at the root"
        raise AgentError(
            "invalid",
            f"driver {where} is no server: it has no methods start and stop, or no child storage",
            {"driver": node.path, "methods": sorted(node.methods or [])},
        )
    return storage


async def _status(node: Any) -> dict[str, Any]:
    """``running`` is None for a driver that cannot tell (of Jumpstarter 0.9)."""
    if node.has_method("status"):
        state = await node.call("status")
        return {
            "running": bool(state["running"]), "host": str(state["host"]), "port": int(state["port"]),
            "url": state.get("url"),
        }  # fmt: skip
    value = {"running": None, "host": str(await node.call("get_host")), "port": int(await node.call("get_port"))}
    # what 0.9 calls an HTTP server is known by its client; asking a TFTP server for a URL would be an error
    url = await node.call("get_url") if "Http" in node.client_class else None
    return {**value, "url": url}


async def _put(ctx: Context, storage: Any, file: dict[str, Any]) -> dict[str, Any]:
    from jumpstarter.client import imaging

    lease = await ctx.lease()
    result = await imaging.put(
        storage,
        file["src"],
        file["dest"],
        checksum=file["checksum"],
        check=ctx.check,
        progress=ProgressMeter(ctx, file["dest"]),
        where=lease.reach.target,
    )
    return result.as_dict()


async def _remove(ctx: Context, storage: Any, path: str) -> bool:
    """Whether there was something to remove."""
    if not await storage.call("exists", path):
        return False
    if not ctx.check:
        await storage.call("remove_all", path)
    return True


async def _bring(ctx: Context, node: Any, wanted: str, before: dict[str, Any]) -> bool:
    if wanted == "status" or before["running"] is (wanted == "started"):
        return False
    if not ctx.check:
        await node.call("start" if wanted == "started" else "stop")
    return True


def _described(kind: str, state: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """A file as the task's result shows it, with the address that devices ask for."""
    entry = {key: entry[key] for key in ("changed", "path", "size", "sha256", "reason")}
    if kind == "http":
        entry["url"] = f"{state['url']}/{quote(entry['path'])}" if state["url"] else None
    return entry


def _diff(
    kind: str, before: bool | None, after: bool, stored: list[dict[str, Any]], removed: list[str]
) -> dict[str, str]:
    words = {True: "started", False: "stopped", None: "unknown"}
    old, new = [f"{kind}: {words[before]}"], [f"{kind}: {words[after]}"]
    for entry in stored:
        line = f"{entry['path']}: sha256 {entry['sha256']}"
        old.append(f"{entry['path']}: other or no content" if entry["changed"] else line)
        new.append(line)
    old += [f"{path}: there" for path in removed]
    return {"before": "\n".join(old) + "\n", "after": "\n".join(new) + "\n"}
