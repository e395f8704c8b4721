# SPDX-License-Identifier: Apache-2.0
"""Removing what agents that were killed could not remove themselves."""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path

from .presence import read_presence
from .procwatch import is_alive
from .start_lock import try_start_lock

__all__ = ["sweep"]

log = logging.getLogger(__name__)

UNMARKED_SECONDS = 3600.0
"""Age at which a directory in which no agent ever came up is taken for a leftover."""


def sweep(base: Path, own: Path) -> list[Path]:
    """Remove directories of dead agents below `base`, except `own`; returns what was removed.

    A directory stays while its agent lives, while the playbook it belongs to lives (its log explains the death), and
    while somebody holds its start lock.
    """
    removed = []
    for directory in sorted(base.glob("[rd]-*")):
        if directory != own and directory.is_dir() and not directory.is_symlink() and _remove_if_dead(directory):
            removed.append(directory)
    for lock in sorted(base.glob("[rd]-*.lock")):
        if not lock.with_suffix("").exists():
            _remove_old_lock(lock)
    if removed:
        log.info("removed %d directories of agents that had died", len(removed))
    return removed


def _remove_if_dead(directory: Path) -> bool:
    descriptor = try_start_lock(directory)
    if descriptor is None:
        return False
    try:
        alive, mark = read_presence(directory)
        if alive or not _is_leftover(directory, mark):
            return False
        shutil.rmtree(directory, ignore_errors=True)
        gone = not directory.exists()
        if gone:
            # Nobody starts an agent of a playbook that has ended: the lock goes with its directory.
            Path(f"{directory}.lock").unlink(missing_ok=True)
        return gone
    except OSError as error:
        log.info("%s: not removed: %s", directory, error)
        return False
    finally:
        os.close(descriptor)


def _is_leftover(directory: Path, mark: dict[str, object]) -> bool:
    if not mark:
        return time.time() - directory.stat().st_mtime > UNMARKED_SECONDS
    pid, started = mark.get("watch_pid"), mark.get("watch_start")
    return not (isinstance(pid, int) and isinstance(started, str) and is_alive(pid, started))


def _remove_old_lock(path: Path) -> None:
    try:
        if time.time() - path.stat().st_mtime > UNMARKED_SECONDS:
            path.unlink()
    except FileNotFoundError:
        return
