# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind: per host a directory with events, results and the console log."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from .errors import AgentError
from .paths import safe_name

__all__ = ["EVENTS_NAME", "Recording"]

log = logging.getLogger(__name__)

EVENTS_NAME = "events.jsonl"

_REPORTS = ("junit.xml", "report.html")
"""Files that the recording callback puts beside the hosts' directories."""


class Recording:
    """Directories of one run. Until `set_root` they are in the agent's own directory and end with it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lasts = False
        self._directories: dict[str, Path] = {}
        self.failed_hosts: set[str] = set()
        self.has_callback = False

    @property
    def directories(self) -> dict[str, str]:
        """Directory by host name, for hosts that have one."""
        return {host: str(path) for host, path in self._directories.items()}

    @property
    def kept(self) -> dict[str, str]:
        """Like `directories`, but empty when they go with the agent."""
        return self.directories if self._lasts else {}

    def set_root(self, root: Path) -> None:
        """Where directories of hosts that have none yet are made. The caller's report directory, an absolute path."""
        if not root.is_absolute():
            raise AgentError("invalid", f"recording directory {str(root)!r} is not an absolute path")
        root.mkdir(parents=True, exist_ok=True)
        self._root = root
        self._lasts = True

    def directory(self, host: str) -> Path:
        """The directory of a host, made on first use (mode 0700: a console log may show secrets)."""
        path = self._directories.get(host)
        if path is None:
            path = self._root / safe_name(f"{host}/" if host in _REPORTS else host)
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._directories[host] = path
        return path

    def files(self, host: str) -> list[str]:
        """Names of the files in a host's directory."""
        path = self._directories.get(host)
        return sorted(entry.name for entry in path.iterdir()) if path is not None else []

    def event(self, host: str, kind: str, **data: Any) -> None:
        """Append one line to the host's events. A full disk is logged, it does not fail the device's work."""
        line = json.dumps({"t": round(time.time(), 3), "event": kind, **data}, default=str, ensure_ascii=False)
        try:
            path = self.directory(host) / EVENTS_NAME
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, line.encode("utf-8", "surrogatepass") + b"\n")
            finally:
                os.close(descriptor)
        except OSError as error:
            log.warning("%s: event %s not recorded: %s", host, kind, error)
