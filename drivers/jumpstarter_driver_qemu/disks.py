# SPDX-License-Identifier: Apache-2.0
"""The files a machine's disk and firmware live in. Images named by the configuration are only ever read.

Two ways to live:

* *kept* (``disk:`` or ``state_dir:`` in the configuration): the board has a directory of its own that outlives the
  exporter. The disk is a raw file there, like the flash of a real board; it starts as a copy of the golden image, or
  empty. One exporter at a time uses it (a lock in the directory).
* *for one session*: files in a temporary directory that goes away at its end. The golden image is the backing file of
  an overlay, so that starting from it costs nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jumpstarter.common.process import spawn
from jumpstarter.common.storage import format_size
from jumpstarter_driver_qemu.errors import MachineBusy
from jumpstarter_driver_qemu.sessions import make_session_directory, session_directory_name, sweep
from jumpstarter_driver_qemu.settings import PARTITIONS

__all__ = ["Disks", "Drive", "ImageInfo", "check_space", "image_info"]

_FORMATS = ("raw", "qcow2", "qcow", "vmdk")
_FOREIGN = ("vdi", "vhdx", "vpc", "qed", "parallels")
_SECTOR = 512


@dataclass(frozen=True)
class ImageInfo:
    """What `qemu-img info` says: format, size of the disk in it (bytes), and the file it needs below it, if any."""

    format: str
    size: int
    backing: str | None


@dataclass(frozen=True)
class Drive:
    """A disk image as QEMU gets it."""

    path: Path
    format: str


class Disks:
    """Files of one machine.

    golden: partition name to image, read only. kept: directory of a kept board, None for one session. root: the disk
    file of a kept board. size: bytes the disk holds, None to take the image's size.
    """

    def __init__(self, *, golden: Mapping[str, Path], kept: Path | None, root: Path | None, size: int | None) -> None:
        self.golden = dict(golden)
        self.size = size
        self._kept = kept
        self._root = root
        self._runtime = session_directory_name()
        self._runtime_fd: int | None = None
        self._closed = False
        self._guard = threading.Lock()
        self._lock_fd: int | None = None

    @property
    def runtime_path(self) -> Path:
        """Name of the directory for sockets and session files; see `make_runtime`."""
        return self._runtime

    @property
    def directory(self) -> Path:
        """Name of the directory for what belongs to the disk: kept, or of this session."""
        return self._kept or self._runtime

    def make_runtime(self) -> Path:
        """Make the owner-only directory for sockets and session files; it lasts until `close`."""
        with self._guard:
            self._require_open()
            if self._runtime_fd is None:
                sweep(self._runtime.parent)
                self._runtime_fd = make_session_directory(self._runtime)
        return self._runtime

    def file(self, partition: str) -> Path:
        """Where a partition is flashed to. Takes the board's lock; the directory exists afterwards.

        Raises ValueError for an unknown partition, MachineBusy when another exporter has the board.
        """
        if partition not in PARTITIONS:
            raise ValueError(f"partition {partition!r} is unknown; there is {', '.join(PARTITIONS)}")
        if self._kept is None:
            return self.make_runtime() / partition
        with self._guard:
            self._claim(self._kept)
        if partition == "root" and self._root is not None:
            self._root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self._root
        return self._kept / partition

    def target(self, partition: str) -> tuple[Path, int | None]:
        """Where a partition is flashed to and what it holds, None for as much as the image needs.

        A raw disk that the configuration has outgrown is grown here.
        """
        path = self.file(partition)
        if partition != "root":
            return path, None
        size = None if self.size is None else _sectors(self.size)
        if size is not None and path.exists() and self._format(path) == "raw" and 0 < path.stat().st_size < size:
            self._fit(Drive(path, "raw"))
        return path, size

    def clear(self, partition: str) -> None:
        """Make way for a new image where the old one cannot be written over block by block."""
        path = self.file(partition)
        if partition == "root" and path.exists() and self._format(path) != "raw":
            path.unlink()
            _note(path).unlink(missing_ok=True)

    def materialise(self) -> None:
        """Turn a disk that is still an overlay, or only the golden image, into a file of its own, to be read."""
        path = self.file("root")
        overlay = path.with_name("root.overlay")
        golden = self.golden.get("root")
        if path.exists() or (golden is None and not overlay.exists()):
            return
        drive = self.root()
        if drive is not None and drive.path == overlay:
            partial = path.with_name(path.name + ".partial")
            _qemu_img("convert", "-q", "-O", "raw", "-f", "qcow2", str(overlay), str(partial))
            os.replace(partial, path)
            overlay.unlink()

    def firmware(self, partition: str) -> Path | None:
        """The file to boot firmware from: what was flashed, else the golden one, else None."""
        flashed = self.file(partition)
        if flashed.exists():
            return flashed
        golden = self.golden.get(partition)
        if golden is None:
            return None
        _must_exist(partition, golden)
        return golden

    def require_bios(self) -> None:
        """Raise ValueError when the configuration names a firmware for `-bios` that is not there.

        At once, before anybody leases the board, because it is part of the machine. A disk may still be brought by a
        flash, and so may be the firmware of a kept board: what was flashed into that one counts.
        """
        golden = self.golden.get("bios")
        flashed = self._kept is not None and (self._kept / "bios").is_file()
        if golden is not None and not flashed and not golden.is_file():
            raise ValueError(f"default_partitions.bios: {golden} does not exist on the exporter host")

    def variables(self) -> Path | None:
        """The UEFI variables, writable: the guest's settings last as long as the disk does."""
        own = self.file("OVMF_VARS.fd")
        golden = self.golden.get("OVMF_VARS.fd")
        if not own.exists() and golden is not None:
            _must_exist("OVMF_VARS.fd", golden)
            _copy(golden, own)
        return own if own.exists() else None

    def root(self) -> Drive | None:
        """The disk to boot from, prepared and of the right size; None when the machine has none.

        Raises ValueError when the disk would have to shrink or there is no space for it to grow.
        """
        path = self.file("root")
        overlay = path.with_name("root.overlay")
        golden = self.golden.get("root")
        if path.exists():
            drive = Drive(path, self._format(path))
        elif overlay.exists():
            drive = Drive(overlay, "qcow2")
        elif golden is not None:
            drive = self._from_golden(golden, path, overlay)
        elif self.size is not None:
            _create(path, self.size)
            drive = Drive(path, "raw")
        else:
            return None
        self._fit(drive)
        return drive

    def flashed(self, partition: str) -> None:
        """Look at what was just written to ``partition``: note the disk's format before a guest can change it.

        A raw disk whose first bytes the guest later turns into an image header must never be opened as that image: it
        could name any file of the host as its backing file.

        Raises ValueError for an image that needs files of the exporter host.
        """
        if partition != "root":
            return
        path = self.file("root")
        info = image_info(path)
        if info.backing is not None:
            path.unlink()
            raise ValueError(f"the image refers to another file ({info.backing!r}); flash a complete image")
        note = _note(path)
        note.unlink(missing_ok=True)
        path.with_name("root.overlay").unlink(missing_ok=True)
        if info.format != "raw":
            note.write_text(info.format)

    def virtual_size(self) -> int | None:
        """Bytes the disk holds now, None when there is none yet."""
        path = self.file("root")
        for drive in (Drive(path, self._format(path)), Drive(path.with_name("root.overlay"), "qcow2")):
            if drive.path.exists():
                return _virtual_size(drive)
        golden = self.golden.get("root")
        return image_info(golden).size if golden is not None and golden.exists() else None

    def open(self) -> None:
        """Begin a session."""
        self._closed = False
        self.make_runtime()

    def close(self) -> None:
        """Give the board's lock back and remove what was for this session only."""
        with self._guard:
            self._close()

    def _close(self) -> None:
        self._closed = True
        if self._runtime_fd is not None:
            shutil.rmtree(self._runtime)
            os.close(self._runtime_fd)
            self._runtime_fd = None
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _require_open(self) -> None:
        # What is still under way when a session ends must not take the board again.
        if self._closed:
            raise MachineBusy("the session with this board has ended")

    def _claim(self, directory: Path) -> None:
        if self._lock_fd is not None:
            return
        self._require_open()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = directory / "lock"
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(fd, 64, 0).decode(errors="replace").strip() or "?"
            os.close(fd)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise MachineBusy(
                f"the board's state in {directory} is in use by another exporter (pid {owner}); "
                "give each exporter its own state_dir"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        self._lock_fd = fd

    def _format(self, path: Path) -> str:
        note = _note(path)
        text = note.read_text().strip() if note.exists() else "raw"
        return text if text in _FORMATS else "raw"

    def _from_golden(self, golden: Path, path: Path, overlay: Path) -> Drive:
        _must_exist("root", golden)
        info = image_info(golden)
        if self.size is not None and self.size < info.size:
            raise _shrinks(golden, info.size, self.size)
        if self._kept is None:
            _qemu_img("create", "-q", "-f", "qcow2", "-F", info.format, "-b", str(golden.absolute()), str(overlay))
            return Drive(overlay, "qcow2")
        partial = path.with_name(path.name + ".partial")
        if info.format == "raw":
            _copy(golden, partial)
        else:
            _qemu_img("convert", "-O", "raw", str(golden), str(partial))
        os.replace(partial, path)
        return Drive(path, "raw")

    def _fit(self, drive: Drive) -> None:
        """Grow the disk to the configured size, or to whole sectors."""
        present = _virtual_size(drive)
        size = _sectors(self.size or present)
        if present > size:
            raise _shrinks(drive.path, present, size)
        if present == size:
            return
        check_space(drive.path, size - present)
        if drive.format == "raw":
            os.truncate(drive.path, size)
        else:
            _qemu_img("resize", "-q", "-f", drive.format, str(drive.path), str(size))


def image_info(path: Path) -> ImageInfo:
    """Ask `qemu-img` about an image. Raises ValueError for a disk format that is not supported."""
    data = json.loads(_qemu_img("info", "--output=json", str(path)))
    kind = str(data["format"])
    if kind in _FOREIGN:
        raise ValueError(f"{path}: disk format {kind} is not supported; convert it (qemu-img convert -O qcow2)")
    specific = (data.get("format-specific") or {}).get("data") or {}
    needed = [data.get("backing-filename"), specific.get("data-file")]
    needed += [extent.get("filename") for extent in specific.get("extents") or []]
    others = [str(name) for name in needed if name and str(name) != str(path)]
    # Anything else it recognises (an encrypted volume, say) is still the content of a raw disk.
    return ImageInfo(kind if kind in _FORMATS else "raw", int(data["virtual-size"]), others[0] if others else None)


def check_space(path: Path, growth: int) -> None:
    """Raise ValueError when the file system of ``path`` has no room for ``growth`` more bytes."""
    free = shutil.disk_usage(path.parent).free
    if growth > free:
        raise ValueError(
            f"disk {path} cannot grow by {format_size(growth)}: only {format_size(free)} are free on its file system"
        )


def _shrinks(path: Path, present: int, wanted: int) -> ValueError:
    return ValueError(
        f"disk {path} holds {format_size(present)} and cannot shrink to {format_size(wanted)}: data would be lost"
    )


def _sectors(size: int) -> int:
    """``size`` rounded up to whole sectors: a guest cannot use the rest of one."""
    return -(-size // _SECTOR) * _SECTOR


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".format")


def _virtual_size(drive: Drive) -> int:
    return drive.path.stat().st_size if drive.format == "raw" else image_info(drive.path).size


def _must_exist(partition: str, path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"default_partitions.{partition}: {path} does not exist on the exporter host")


def _create(path: Path, size: int) -> None:
    with open(path, "xb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.truncate(_sectors(size))


def _copy(source: Path, target: Path) -> None:
    """Copy a file without its holes, sharing its blocks where the file system can."""
    with open(source, "rb") as src, open(target, "wb") as dst:
        os.fchmod(dst.fileno(), 0o600)
        size = os.fstat(src.fileno()).st_size
        with contextlib.suppress(OSError):  # no reflinks here: copy
            fcntl.ioctl(dst.fileno(), _FICLONE, src.fileno())
            return
        dst.truncate(size)
        offset = 0
        while offset < size:
            try:
                start = os.lseek(src.fileno(), offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only a hole is left
                    return
                raise
            end = os.lseek(src.fileno(), start, os.SEEK_HOLE)
            while start < end:
                copied = os.copy_file_range(src.fileno(), dst.fileno(), end - start, start, start)
                if copied == 0:
                    raise OSError(f"{source} became shorter while it was copied")
                start += copied
            offset = end


_FICLONE = 0x40049409


def _qemu_img(*arguments: str) -> str:
    """Run qemu-img and return its stdout. Raises ValueError with its last line when it fails."""
    import subprocess

    process = spawn(["qemu-img", *arguments], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as stdout:
        text = stdout.read().decode(errors="replace")
    if process.wait():
        raise ValueError(f"qemu-img {arguments[0]}: {process.last_line.removeprefix('qemu-img: ')}")
    return text
