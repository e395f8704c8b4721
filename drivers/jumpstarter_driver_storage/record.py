# SPDX-License-Identifier: Apache-2.0
"""Records: what the exporter last wrote to a target. None is valid from before the first write until success."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from jumpstarter_driver_storage.errors import StorageRefused
from jumpstarter_driver_storage.target import Checked

_VERSION = 1


@dataclass(kw_only=True)
class Record:
    """One target's record.

    ``size``, ``sha256``: of the image as the target holds it. ``source_size``, ``source_sha256``: of the file it came
    from (another only when that was compressed). ``blocks``: digest per block, concatenated, base64.
    ``probe``: `jumpstarter.common.storage.Probe` of the image.
    ``state``: ``valid``, or ``incomplete`` from the first write of a flash until its success.
    ``fingerprint``: `Checked.fingerprint` right after the write. ``written_at``: unix time in seconds.
    """

    state: Literal["valid", "incomplete"]
    key: str
    path: str
    size: int = 0
    sha256: str = ""
    source_size: int = 0
    source_sha256: str = ""
    probe: str = ""
    block_size: int = 0
    digest: str = ""
    blocks: str = ""
    fingerprint: dict[str, str] = field(default_factory=dict)
    written_at: float = 0.0
    version: int = _VERSION

    def block_digests(self) -> bytes:
        """The concatenated digests."""
        return base64.b64decode(self.blocks)

    def summary(self) -> dict[str, Any]:
        """Without the digests of blocks: what clients are told."""
        return {name: value for name, value in asdict(self).items() if name not in ("blocks", "key", "version")}


class RecordStore:
    """Records in a folder of their own (0700), one file (0600) per target, replaced atomically."""

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        """``folder``: default is ``jumpstarter-lab/storage`` below $XDG_STATE_HOME (~/.local/state)."""
        self.folder = Path(folder).expanduser() if folder else default_folder()

    def load(self, checked: Checked) -> Record | None:
        """The target's record; None when there is none (or one of another version or target)."""
        try:
            data = json.loads(self._file(checked).read_text())
            record = Record(**data)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):  # damaged or from another version: as good as none
            return None
        return record if record.version == _VERSION and record.key == checked.key else None

    def invalidate(self, checked: Checked) -> None:
        """Before the first write: whatever happens next, the old record is not believed any more."""
        self._store(Record(state="incomplete", key=checked.key, path=checked.target.path, written_at=time.time()))

    def save(self, checked: Checked, record: Record) -> None:
        """After success: ``record`` describes what the target holds."""
        self._store(record)

    @contextlib.contextmanager
    def lock(self, checked: Checked) -> Iterator[None]:
        """Hold the target against other writers on this host; raises StorageRefused when one is at work."""
        self._make_folder()
        path = self._file(checked).with_suffix(".lock")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StorageRefused(f"{checked.label} is being written by another flash", code="busy") from None
            yield
        finally:
            os.close(fd)

    def _file(self, checked: Checked) -> Path:
        return self.folder / f"{hashlib.sha256(checked.key.encode()).hexdigest()[:32]}.json"

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageRefused(f"state folder {self.folder}: {error.strerror}", code="permission") from error

    def _store(self, record: Record) -> None:
        self._make_folder()
        name = f"{hashlib.sha256(record.key.encode()).hexdigest()[:32]}.json"
        fd, temporary = tempfile.mkstemp(prefix=".new-", dir=self.folder)  # mkstemp makes it 0600
        try:
            with os.fdopen(fd, "w") as file:
                json.dump(asdict(record), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.folder / name)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def default_folder() -> Path:
    """Where records are kept unless the configuration says otherwise."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "jumpstarter-lab" / "storage"
