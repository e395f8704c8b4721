# SPDX-License-Identifier: Apache-2.0
"""Detached leases: held by an agent of their own, found by name, used through the agent of whichever run asks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from .errors import AgentError
from .framing import encode_frame, read_frame
from .lease import Place
from .paths import SOCKET_NAME, detached_dir, make_private
from .procwatch import start_time
from .reach import ControllerReach
from .relay import pump
from .request import Request
from .server import Peer
from .start_lock import take_start_lock

__all__ = ["Links", "how_to_reattach"]

log = logging.getLogger(__name__)

_START_SECONDS = 60.0
_FRAME_LIMIT = 1024 * 1024


def how_to_reattach(name: str) -> str:
    """The task that gets the device back in a later run."""
    return f"jumpstarter.lab.lease: {{state: present, lifetime: detached, name: {name}}}"


class Links:
    """Which hosts of this run are served by a detached agent."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._names: dict[str, str] = {}
        self._children: list[subprocess.Popen[bytes]] = []

    async def route(self, request: Request, peer: Peer) -> bool:
        """Answer the request through a detached agent when its host has, or asks for, a detached lease."""
        name, starts = self._name_for(request)
        if name is None or request.host is None:
            return False
        directory = detached_dir(self._place.base, name)
        connection = await _connect(directory)
        found = connection is not None
        if connection is None:
            if not starts or request.check:
                # It ended by itself: this agent answers, for "absent" and the like, that there is no lease.
                self._names.pop(request.host.name, None)
                return False
            await self._start(directory, name)
            connection = await _connect(directory)
            if connection is None:
                raise AgentError("internal", f"the agent of the detached lease {name!r} does not answer")
        reader, writer = connection
        try:
            final = await _relay_request(request, peer, reader, writer, reattached=found and starts)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        self._remember(request.host.name, name, request, final)
        return True

    def _name_for(self, request: Request) -> tuple[str | None, bool]:
        """Name of the detached lease a request is about, and whether it may be started for it."""
        if request.host is None:
            return None, False
        linked = self._names.get(request.host.name)
        wanted = {**request.host.lease, **request.args} if request.op == "lease" else request.host.lease
        name = wanted.get("name")
        if wanted.get("lifetime") == "detached":
            if not isinstance(name, str) or not name:
                raise AgentError(
                    "invalid",
                    f"{request.host.name}: lease: a detached lease needs a name: that is how it is found again",
                )
            # A controller keeps a detached lease itself. Only one that was kept for inspection has an agent.
            local = not isinstance(request.host.reach, ControllerReach)
            return name, local and request.op != "lease_info" and request.args.get("state") not in ("absent", "info")
        if linked is None and request.op == "lease" and request.args.get("state") in ("absent", "info"):
            return (name if isinstance(name, str) else None), False
        return linked, False

    def _remember(self, host: str, name: str, request: Request, final: dict[str, Any] | None) -> None:
        if final is None or final.get("type") != "result":
            return
        state = (final.get("value") or {}).get("lease", {}).get("state") if request.op == "lease" else None
        if state == "absent":
            self._names.pop(host, None)
        else:
            self._names[host] = name

    async def _start(self, directory: Path, name: str) -> None:
        """Start the agent of the detached lease unless somebody else just did."""
        lock = await take_start_lock(directory)
        try:
            probe = await _connect(directory)
            if probe is not None:
                probe[1].close()
                return
            make_private(directory)
            try:
                await self._spawn(directory, name)
            except AgentError:
                # The agent of a run that failed just now may have come first, to keep the lease for inspection.
                if (probe := await _connect(directory)) is None:
                    raise
                probe[1].close()
        finally:
            os.close(lock)

    async def _spawn(self, directory: Path, name: str) -> None:
        log_path = directory / "agent.log"
        log_fd = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        ready_read, ready_write = os.pipe()
        command = [sys.executable, "-m", "jumpstarter_agent", "--dir", str(directory), "--detached", name]
        try:
            # Not asyncio's subprocess: that one kills its child when it is closed, and this child outlives us.
            process = subprocess.Popen(
                [*command, "--ready-fd", str(ready_write)],
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                pass_fds=(ready_write,),
                start_new_session=True,
            )
        finally:
            os.close(ready_write)
            os.close(log_fd)
        self._children.append(process)
        log.info("started agent pid %d (%s) for the detached lease %r", process.pid, start_time(process.pid), name)
        try:
            async with asyncio.timeout(_START_SECONDS):
                if await _read_byte(ready_read) != b"R":
                    raise AgentError(
                        "internal", f"the agent of the detached lease {name!r} did not start; see {log_path}"
                    )
        except TimeoutError:
            process.kill()
            raise AgentError(
                "timeout", f"the agent of the detached lease {name!r} did not start; see {log_path}"
            ) from None
        finally:
            os.close(ready_read)


async def _connect(directory: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    try:
        return await asyncio.open_unix_connection(os.fspath(directory / SOCKET_NAME), limit=_FRAME_LIMIT)
    except (FileNotFoundError, ConnectionRefusedError):
        return None


async def _relay_request(
    request: Request, peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, reattached: bool
) -> dict[str, Any] | None:
    """Pass the request on and its replies back; returns the last frame. Cancelling closes the far connection."""
    writer.write(encode_frame(request.document))
    await writer.drain()
    while (frame := await read_frame(reader)) is not None:
        kind = frame.get("type")
        if kind == "event":
            await peer.event(str(frame.get("event")), frame.get("data") or {})
            continue
        if kind == "ready":
            await peer.ready(frame.get("value") or {})
            await pump(peer, Peer(reader, writer))
            return frame
        value = frame.get("value")
        if reattached and isinstance(value, dict) and isinstance(value.get("lease"), dict):
            value["lease"]["reattached"] = True
        await peer.finish(frame)
        return frame
    raise AgentError("exporter_lost", f"{request.op}: the agent that holds the detached lease ended before it answered")


async def _read_byte(descriptor: int) -> bytes:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)
    return os.read(descriptor, 1)
