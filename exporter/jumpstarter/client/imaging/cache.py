# SPDX-License-Identifier: Apache-2.0
"""What was once computed about a local image, so that flashing it again needs no second look at its bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

__all__ = ["Facts", "FileKey", "load_facts", "save_facts"]


@dataclass(frozen=True)
class FileKey:
    """A file in the state it has now; any write changes it."""

    path: str
    dev: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str, fd: int) -> FileKey:
        """The key of an open file."""
        info = os.fstat(fd)
        return cls(os.path.realpath(path), info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """``source_sha256``: of the file. ``content_sha256``, ``content_size``: of the image in it (the same unless it is
    compressed). ``complete``: it was decoded to its end without error. Empty or None: not known yet."""

    source_sha256: str = ""
    content_sha256: str = ""
    content_size: int | None = None
    complete: bool = False

    def merged(self, other: Facts) -> Facts:
        """With what ``other`` knows better."""
        return replace(self, **{name: value for name, value in asdict(other).items() if value not in ("", None, False)})


def load_facts(key: FileKey) -> Facts:
    """What is known; nothing for a file that was never seen or has changed."""
    try:
        data = json.loads(_file(key).read_text())
        if data.pop("key") == asdict(key):
            return Facts(**data)
    except (OSError, ValueError, TypeError, KeyError):  # absent, or not ours to understand: computed anew
        pass
    return Facts()


def save_facts(key: FileKey, facts: Facts) -> None:
    """Remember; a cache that cannot be written costs time, nothing else."""
    path = _file(key)
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)  # mkstemp makes it 0600
        try:
            with os.fdopen(fd, "w") as file:
                json.dump({"key": asdict(key), **asdict(facts)}, file)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise


def cache_folder() -> Path:
    """``jumpstarter-lab/images`` below $XDG_CACHE_HOME (~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jumpstarter-lab" / "images"


def _file(key: FileKey) -> Path:
    name = hashlib.sha256(f"{key.dev}/{key.inode}/{key.path}".encode()).hexdigest()[:32]
    return cache_folder() / f"{name}.json"
