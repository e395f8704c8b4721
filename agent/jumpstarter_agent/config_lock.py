# SPDX-License-Identifier: Apache-2.0
"""One local exporter per configuration file and user: a lock that names its holder.

The lock descriptor is handed to the exporter process as well, so the lock is free only when both the agent and the
exporter (which may still be switching the device off) are gone.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from .errors import AgentError
from .paths import make_private
from .procwatch import is_alive, start_time

__all__ = ["ConfigLock"]

WIND_DOWN_SECONDS = 10.0
"""How long to wait for the exporter of a holder that has already ended."""

_RETRY_SECONDS = 0.05


class ConfigLock:
    """``async with ConfigLock(base, config, holder) as lock``: `lock.fd` is to be inherited by the exporter.

    Raises `AgentError` "busy" with the holder's own words when another run has the configuration in use.
    """

    def __init__(self, base: Path, config: str, holder: str, *, wind_down: float = WIND_DOWN_SECONDS) -> None:
        self._base = base
        self._config = config
        self._holder = holder
        self._wind_down = wind_down
        self.fd = -1

    async def __aenter__(self) -> ConfigLock:
        digest = hashlib.sha256(os.path.realpath(self._config).encode("utf-8", "surrogateescape")).hexdigest()[:24]
        path = make_private(self._base / "locks") / f"{digest}.lock"
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            await self._acquire()
        except BaseException:
            os.close(self.fd)
            raise
        self._write({"holder": self._holder, "pid": os.getpid(), "started": start_time(os.getpid())})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Closing, not unlocking: an exporter that outlives us keeps the lock through its own copy. The file stays:
        # removing it would let two holders lock two different files of the same name.
        os.close(self.fd)

    async def _acquire(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wind_down
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                pass
            owner = self._read()
            if _runs(owner) or loop.time() >= deadline:
                raise AgentError(
                    "busy", self._busy_text(owner), {"holder": owner.get("holder"), "pid": owner.get("pid")}
                )
            await asyncio.sleep(_RETRY_SECONDS)

    def _busy_text(self, owner: dict[str, Any]) -> str:
        who = owner.get("holder") or "another process"
        state = "" if _runs(owner) else " (which has ended, but its exporter is still closing the device)"
        return f"exporter {self._config} is in use by {who}{state}; wait until it is done or end it"

    def _read(self) -> dict[str, Any]:
        try:
            value = json.loads(os.pread(self.fd, 65536, 0).decode("utf-8"))
        except ValueError:
            # The holder locked the file but has not written yet.
            return {"pid": 0}
        return value if isinstance(value, dict) else {}

    def _write(self, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode("utf-8")
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, data, 0)


def _runs(owner: dict[str, Any]) -> bool:
    pid, started = owner.get("pid"), owner.get("started")
    return isinstance(pid, int) and isinstance(started, str) and is_alive(pid, started)
