# SPDX-License-Identifier: Apache-2.0
"""Directories for one session's sockets and disks, and the removal of those whose exporter was killed."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import tempfile
from pathlib import Path

__all__ = ["make_session_directory", "session_directory_name", "sweep"]

_PREFIX = "jumpstarter-qemu-"
_LOCK = ".lock"

logger = logging.getLogger(__name__)


def session_directory_name() -> Path:
    """A new name; nothing is made yet."""
    # A socket's path must fit in 108 bytes, and TMPDIR may be deep.
    base = tempfile.gettempdir()
    return Path(base if len(base) < 60 else "/tmp") / f"{_PREFIX}{secrets.token_hex(8)}"


def make_session_directory(path: Path) -> int:
    """Make an owner-only directory; returns a descriptor that marks it as in use while it is open."""
    path.mkdir(mode=0o700)
    # Locked before it gets the name by which `sweep` finds it: there is no moment in which it looks abandoned.
    fd = os.open(path / f"{_LOCK}.new", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.rename(path / f"{_LOCK}.new", path / _LOCK)
    return fd


def sweep(base: Path) -> None:
    """Remove our directories in ``base`` that no living exporter uses."""
    for path in base.glob(f"{_PREFIX}*"):
        try:
            if path.lstat().st_uid != os.geteuid():
                continue
            fd = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:  # being made, being removed, or somebody else's
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            logger.info("removing %s, left by an exporter that was killed", path)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(fd)
