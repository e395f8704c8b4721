# SPDX-License-Identifier: Apache-2.0
"""A private directory for the sockets of one command."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["runtime_directory"]


@contextmanager
def runtime_directory() -> Iterator[Path]:
    """A new directory, mode 0700, under $XDG_RUNTIME_DIR where that can be used, else under the temporary directory."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    usable = base if base and os.access(base, os.W_OK | os.X_OK) else None
    # mkdtemp makes it 0700 whatever the umask is.
    with tempfile.TemporaryDirectory(prefix="jumpstarter-", dir=usable) as name:
        yield Path(name)
