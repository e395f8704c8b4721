# SPDX-License-Identifier: Apache-2.0
"""forward: a listening socket here whose connections end at a driver's byte stream; lives as long as the lease."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..context import Context
from ..errors import AgentError, as_agent_error
from ..lease import HostLease
from ..paths import MAX_SOCKET_PATH
from ..relay import relay
from ..server import Peer

__all__ = ["forward"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Wanted:
    """One forward as asked for; the key under which the lease keeps it."""

    driver: str
    method: str
    kind: str
    bind: str
    port: int
    path: str

    @property
    def key(self) -> tuple[str, ...]:
        """Same forward, same key: asking twice gives the one that is there."""
        return ("forward", self.driver, self.method, self.kind, self.bind, str(self.port), self.path)


class _Forward:
    """A listener and its open connections. node: finds the driver; an exporter that was started anew has another."""

    def __init__(self, wanted: _Wanted, node: Callable[[], Any]) -> None:
        self.wanted = wanted
        self._node = node
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.host = ""
        self.port = 0
        self.path = ""

    async def open(self) -> None:
        """Start listening; an `AgentError` names an address that cannot be had."""
        wanted = self.wanted
        try:
            if wanted.kind == "unix":
                await self._open_unix()
            else:
                self._server = await asyncio.start_server(self._accepted, wanted.bind, wanted.port)
                self.host, self.port = self._server.sockets[0].getsockname()[:2]
        except (OSError, OverflowError) as error:
            where = wanted.path if wanted.kind == "unix" else f"{wanted.bind}:{wanted.port}"
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise AgentError("io", f"cannot listen on {where}: {reason}") from error

    async def close(self) -> None:
        """Stop listening and end every connection."""
        if self._server is not None:
            self._server.close()
        running = list(self._connections)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        if self.path:
            Path(self.path).unlink(missing_ok=True)

    def describe(self) -> dict[str, Any]:
        """How to reach it: address is "host:port" or the socket's path."""
        address = self.path or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")
        return {
            "driver": self.wanted.driver,
            "method": self.wanted.method,
            "kind": self.wanted.kind,
            "address": address,
            "host": self.host or None,
            "port": self.port or None,
            "path": self.path or None,
        }

    async def _open_unix(self) -> None:
        path = self.wanted.path
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise AgentError("invalid", f"{path}: longer than the {MAX_SOCKET_PATH} bytes a unix socket may have")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(path)
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(mask)
        self.path = path
        self._server = await asyncio.start_unix_server(self._accepted, sock=listener)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        peer = Peer(reader, writer)
        try:
            async with self._node().stream(self.wanted.method) as opened:
                await relay(peer, opened)
        except asyncio.CancelledError:
            log.debug("forward to %s closed", self.wanted.driver)
        except Exception as error:  # noqa: BLE001 - one connection failed, the forward goes on
            log.warning("forward to %s: %s", self.wanted.driver, as_agent_error(error).message)
        finally:
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()


async def forward(ctx: Context) -> dict[str, Any]:
    """Open ("present"), close ("absent") or list ("info") forwards of the host's lease."""
    args = ctx.args
    state = args.choice("state", ("present", "absent", "info"), "present")
    driver = args.text("driver")
    wanted = _Wanted(
        driver=driver,
        method=args.text("method", "connect"),
        kind=args.choice("kind", ("tcp", "unix"), "tcp"),
        bind=args.text("bind", "127.0.0.1"),
        port=args.integer("port", 0),
        path=args.text("path"),
    )
    args.finish()
    if state == "info":
        held = ctx.agent.leases.get(ctx.host.name)
        return {"changed": False, "forwards": _list(held)}
    if not driver:
        raise AgentError("invalid", "argument 'driver' is missing")
    if state == "absent":
        return await _close(ctx, wanted)
    return await _open(ctx, wanted)


async def _open(ctx: Context, wanted: _Wanted) -> dict[str, Any]:
    node = await ctx.node(wanted.driver)
    _check_stream(node, wanted)
    lease = await ctx.lease()
    if wanted.kind == "unix" and not wanted.path:
        name = f"f-{lease.id}-{len(lease.resources)}.sock"
        same = [
            item
            for item in _forwards(lease)
            if (item.wanted.driver, item.wanted.method) == (wanted.driver, wanted.method)
        ]
        kept = next((item.path for item in same if item.wanted.kind == "unix"), None)
        wanted = _Wanted(**{**vars(wanted), "path": kept or str(lease.place.directory / name)})
    known = wanted.key in lease.resources
    if ctx.check and not known:
        return {"changed": True, "address": None, "host": None, "port": None, "path": None, "simulated": True}

    async def make() -> _Forward:
        made = _Forward(wanted, lambda: lease.connection.session.node(wanted.driver))
        await made.open()
        return made

    opened = await lease.resource(wanted.key, make, _Forward.close)
    return {"changed": not known, **opened.describe(), "forwards": _list(lease)}


async def _close(ctx: Context, wanted: _Wanted) -> dict[str, Any]:
    """Close every forward of the driver and method that fits what was given; port 0 and no path fit all."""
    held = ctx.agent.leases.get(ctx.host.name)
    fitting = [item for item in _forwards(held) if _fits(item, wanted)]
    if held is not None and not ctx.check:
        for item in fitting:
            await held.drop_resource(item.wanted.key)
    return {"changed": bool(fitting), "forwards": _list(held)}


def _fits(item: _Forward, wanted: _Wanted) -> bool:
    same = (item.wanted.driver, item.wanted.method) == (wanted.driver, wanted.method)
    return same and wanted.port in (0, item.port) and wanted.path in ("", item.path)


def _forwards(lease: HostLease | None) -> list[_Forward]:
    return [item for item in lease.resources.values() if isinstance(item, _Forward)] if lease is not None else []


def _list(lease: HostLease | None) -> list[dict[str, Any]]:
    return [item.describe() for item in _forwards(lease)]


def _check_stream(node: Any, wanted: _Wanted) -> None:
    if node.methods is None:
        return
    info = node.methods.get(wanted.method)
    if info is None or info.kind != "bytes":
        streams = sorted(name for name, method in node.methods.items() if method.kind == "bytes")
        raise AgentError(
            "not_found",
            f"driver {wanted.driver} has no byte stream {wanted.method!r}; it has: {', '.join(streams) or 'none'}",
            {"driver": wanted.driver, "method": wanted.method, "streams": streams},
        )
