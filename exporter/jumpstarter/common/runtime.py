# SPDX-License-Identifier: Apache-2.0
"""Directories of a running program: a private one for its sockets, and one for what the next run has to know."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["runtime_directory", "state_directory"]


#: A system allows 107 bytes for the path of a socket: the directory's own name comes off, and room for what is in it.
_LONGEST_BASE = 107 - len("/jumpstarter-12345678") - len("/exporter.sock") - 10


@contextmanager
def runtime_directory() -> Iterator[Path]:
    """A new directory for sockets, mode 0700: under $XDG_RUNTIME_DIR, the temporary directory or /tmp.

    The first of them is taken that can be used and whose name leaves room for a socket's.
    """
    given = [base for base in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir()) if base]
    fits = (base for base in given if len(os.fsencode(base)) <= _LONGEST_BASE and os.access(base, os.W_OK | os.X_OK))
    # mkdtemp makes it 0700 whatever the umask is.
    with tempfile.TemporaryDirectory(prefix="jumpstarter-", dir=next(fits, "/tmp")) as name:
        yield Path(name)


def state_directory() -> Path:
    """Where this user's programs keep what outlives them; not made here.

    systemd's $STATE_DIRECTORY, else $XDG_STATE_HOME/jumpstarter, else ~/.local/state/jumpstarter.
    """
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "jumpstarter"
