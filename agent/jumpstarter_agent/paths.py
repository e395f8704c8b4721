# SPDX-License-Identifier: Apache-2.0
"""Where the agent's files are: one private directory per user, one below it per run or detached lease."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from pathlib import Path

from .errors import AgentError

__all__ = ["MAX_SOCKET_PATH", "SOCKET_NAME", "base_dir", "detached_dir", "make_private", "run_dir", "safe_name"]

SOCKET_NAME = "agent.sock"
MAX_SOCKET_PATH = 107
"""Longest path in bytes that Linux takes for a unix socket."""


def base_dir() -> Path:
    """The user's directory for all agents, made private (0700) and checked to be ours."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and _is_own_dir(runtime):
        path = Path(runtime) / "jumpstarter-lab"
    else:
        path = Path(tempfile.gettempdir()) / f"jumpstarter-lab-{os.getuid()}"
    return make_private(path)


def run_dir(base: Path, pid: int, started: str) -> Path:
    """Directory of the agent of the playbook process `pid` that started at `started`."""
    return base / f"r-{_digest(f'{os.getuid()}:{pid}:{started}')}"


def detached_dir(base: Path, name: str) -> Path:
    """Directory of the agent that holds the detached lease `name`."""
    return base / f"d-{_digest(name)}"


def make_private(path: Path) -> Path:
    """Create the directory with mode 0700, or check the existing one: ours, no link, no access for others."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass
    info = os.lstat(path)
    if not stat.S_ISDIR(info.st_mode):
        raise AgentError("refused", f"{path}: is not a directory; remove it")
    if info.st_uid != os.getuid():
        raise AgentError("refused", f"{path}: belongs to uid {info.st_uid}, not to uid {os.getuid()}; remove it")
    if stat.S_IMODE(info.st_mode) & 0o077:
        os.chmod(path, 0o700)
    return path


def safe_name(text: str) -> str:
    """A file name for any text: readable, unique by a short hash where characters had to go."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".")[:60]
    return plain if plain == text else f"{plain or 'x'}-{_digest(text)[:8]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _is_own_dir(path: str) -> bool:
    try:
        info = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid()
