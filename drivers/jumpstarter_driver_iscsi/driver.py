# SPDX-License-Identifier: Apache-2.0
"""An iSCSI target: disks for devices that boot from, or are installed over, the network."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import export
from jumpstarter.driver.session_server import SessionServer
from jumpstarter.streams.encoding import Compression, decompress
from jumpstarter_driver_iscsi.tgt import IscsiTargetError, Tgtd
from jumpstarter_driver_opendal.beneath import clean_path
from jumpstarter_driver_opendal.files import LocalFile
from jumpstarter_driver_opendal.storage import Opendal

__all__ = ["ISCSI", "ISCSIError"]

ISCSIError = IscsiTargetError

MIB: Final = 1 << 20
_SECTOR: Final = 512
_LUNS: Final = 255
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: RFC 3720 3.2.6.3.1: "iqn.", year and month, reversed domain, and after a colon what its owner likes.
_IQN: Final = re.compile(r"iqn\.\d{4}-\d{2}\.[a-z0-9][a-z0-9.-]*(:[a-z0-9:._-]+)?")
_ALGORITHMS: Final = {"gz": Compression.GZIP, "xz": Compression.XZ, "bz2": Compression.BZ2}
#: RFC 3720 8.2.1: CHAP secrets shorter than 96 bits are weak; some initiators take no more than 16 characters.
_PASSWORD_LENGTH: Final = (12, 16)


@dataclass(frozen=True)
class _Lun:
    lun: int
    path: str
    size: int
    is_block: bool


@dataclass(kw_only=True)
class ISCSI(SessionServer):
    """Offers files (and allowed block devices) of the exporter as iSCSI disks, with tgtd, which needs no kernel module
    and no privileges. Its child ``storage`` (`Opendal`, scheme ``fs``) puts files into ``root_dir``.

    root_dir: folder of the files. iqn_prefix, target_name: the target is called ``iqn_prefix:target_name``.
    host: the address that initiators connect to, told by `get_host`; this host's own by default. bind: the address to
    listen on, ``host`` by default. port: 0 for any free one, told by `get_port` once it runs.
    remove_created_on_close: at the end of the session remove the files that were put there in it.
    block_device_allowlist: absolute paths of block devices that may be offered.

    Who logs in must know a CHAP user and password: chap_user with chap_password or chap_password_file (12 to 16
    characters), else both are made for each session; `get_credentials` tells them. allowed_initiators: addresses,
    networks and names (``iqn....``) that may log in; with such a list, ``chap: false`` does without passwords.
    program: tgtd's path or name.
    """

    driver_type = "storage"

    root_dir: str = "/var/lib/iscsi"
    iqn_prefix: str = "iqn.2024-06.dev.jumpstarter"
    target_name: str = "target1"
    host: str = ""
    bind: str | None = None
    port: int = 3260
    remove_created_on_close: bool = False
    block_device_allowlist: list[str] = field(default_factory=list)
    chap: bool = True
    chap_user: str = "jumpstarter"
    chap_password: str | None = field(default=None, repr=False)
    chap_password_file: str | None = None
    allowed_initiators: list[str] = field(default_factory=list)
    program: str = "tgtd"

    storage: Opendal = field(init=False, repr=False)
    _tgtd: Tgtd | None = field(init=False, repr=False, default=None)
    _luns: dict[str, _Lun] = field(init=False, repr=False, default_factory=dict)
    _password: str = field(init=False, repr=False, default="")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.port <= 65535:
            raise ConfigurationError(f"field port: {self.port} is no TCP port (0 to 65535)")
        if not _IQN.fullmatch(self._iqn):
            raise ConfigurationError(
                f"fields iqn_prefix, target_name: {self._iqn} is no iSCSI name; e.g. iqn.2024-06.org.example:disk"
            )
        for path in self.block_device_allowlist:
            if not os.path.isabs(path):
                raise ConfigurationError(f"field block_device_allowlist: {path} is not an absolute path")
        if not self.chap and not self.allowed_initiators:
            raise ConfigurationError(
                "field chap: false lets everybody write to the disks; name those who may in allowed_initiators"
            )
        if not re.fullmatch(r"[A-Za-z0-9._-]+", self.chap_user):
            raise ConfigurationError(f"field chap_user: {self.chap_user!r} must be letters, digits, '.', '_' and '-'")
        if self.chap_password is not None and self.chap_password_file is not None:
            raise ConfigurationError("fields chap_password, chap_password_file: give one of them")
        if self.chap_password is not None:
            _check_password(self.chap_password, "field chap_password")
        for initiator in self.allowed_initiators:
            _check_initiator(initiator)
        self.storage = Opendal(
            scheme="fs", kwargs={"root": self.root_dir}, remove_created_on_close=self.remove_created_on_close
        )
        self.children["storage"] = self.storage

    @classmethod
    def client(cls) -> str:
        """Import path of the client class."""
        return "jumpstarter_driver_iscsi.client.ISCSIServerClient"

    @property
    def _iqn(self) -> str:
        return f"{self.iqn_prefix}:{self.target_name}"

    # --- the target -----------------------------------------------------------------------------------------

    @property
    def _runs(self) -> bool:
        return self._tgtd is not None and self._tgtd.running

    def _start(self) -> None:
        self._stop()
        tgtd = Tgtd(self.program, self._bind_address(), self.port, self.logger)
        account = (self.chap_user, self._chap_password()) if self.chap else None
        tgtd.start()
        try:
            tgtd.make_target(self._iqn, account, self.allowed_initiators or ["ALL"])
        except BaseException:
            tgtd.stop()
            raise
        self._tgtd = tgtd
        self.logger.info("iSCSI target %s at %s port %d", self._iqn, tgtd.host, tgtd.port)

    def _stop(self) -> None:
        self._luns.clear()
        tgtd, self._tgtd = self._tgtd, None
        if tgtd is not None:
            tgtd.stop()

    @export
    def clear_all_luns(self) -> None:
        """Take all disks away; files stay. Starts the target when it does not run."""
        with self._lock:
            self.start()
            for name in list(self._luns):
                self.remove_lun(name)

    @export(readonly=True)
    def get_port(self) -> int:
        """Its TCP port; the configured one while it does not run (0: any)."""
        tgtd = self._tgtd
        return tgtd.port if tgtd is not None else self.port

    @export(readonly=True)
    def get_target_iqn(self) -> str:
        """The target's name."""
        return self._iqn

    @export(readonly=True)
    def get_credentials(self) -> dict[str, str] | None:
        """CHAP ``user`` and ``password`` that initiators must show; None when the configuration does without."""
        with self._lock:
            return {"user": self.chap_user, "password": self._chap_password()} if self.chap else None

    @export(readonly=True)
    def status(self) -> dict[str, Any]:
        """``running``, ``host``, ``port``, ``iqn``, ``chap``, and the names of the ``luns``."""
        tgtd = self._tgtd
        return {
            "running": tgtd is not None and tgtd.running,
            "host": self.get_host(),
            "port": self.get_port(),
            "iqn": self._iqn,
            "chap": self.chap,
            "luns": sorted(self._luns),
        }

    # --- disks ----------------------------------------------------------------------------------------------

    @export
    def add_lun(self, name: str, file_path: str, size_mb: int = 0, is_block: bool = False) -> str:
        """Offer ``file_path``, a file below root_dir or (is_block) an allowed block device; returns ``name``.

        A file that is missing is made, ``size_mb`` MiB large; one that is smaller grows. One that is larger keeps its
        size: nothing of an image is left out. A disk of that name is replaced.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"LUN name {name!r}: 1 to 64 letters, digits, '.', '_' and '-', please")
        if (size := int(size_mb)) < 0:
            raise ValueError(f"size_mb of LUN {name} is {size}: it cannot be negative")
        with self._lock:
            tgtd = self._running()
            fd, shown = self._open_block(file_path) if is_block else self._open_file(file_path, size * MIB)
            try:
                if name in self._luns:
                    self.remove_lun(name)
                taken = {other.lun for other in self._luns.values()}
                lun = next((number for number in range(1, _LUNS + 1) if number not in taken), None)
                if lun is None:
                    raise IscsiTargetError(f"LUN {name}: there are {_LUNS} disks already; take some away")
                # By descriptor: what the path led to when it was checked, whatever somebody makes of it meanwhile.
                tgtd.add(lun, f"/proc/{os.getpid()}/fd/{fd}")
                self._luns[name] = _Lun(lun, shown, os.lseek(fd, 0, os.SEEK_END), is_block)
            finally:
                os.close(fd)
            self.logger.info("LUN %d (%s) is %s", lun, name, shown)
            return name

    @export
    def remove_lun(self, name: str) -> None:
        """Take a disk away; its file stays. ValueError when there is none of that name."""
        with self._lock:
            tgtd = self._running()
            if name not in self._luns:
                raise ValueError(f"there is no LUN {name!r}; there are: {', '.join(sorted(self._luns)) or 'none'}")
            tgtd.remove(self._luns[name].lun)
            del self._luns[name]

    @export(readonly=True)
    def list_luns(self) -> list[dict[str, Any]]:
        """The disks: ``name``, ``path``, ``size`` (bytes), ``lun_id`` and ``is_block``."""
        with self._lock:
            return [
                {"name": name, "path": lun.path, "size": lun.size, "lun_id": lun.lun, "is_block": lun.is_block}
                for name, lun in self._luns.items()
            ]

    @export
    def decompress(self, src_path: str, dst_path: str, algo: str) -> None:
        """Unpack a file of root_dir into another one of it; algo: "gz", "xz" or "bz2".

        ``dst_path`` appears when it is complete. ValueError for data that is damaged or ends too early.
        """
        if algo not in _ALGORITHMS:
            raise ValueError(f"decompress: algo {algo!r} is not one of {', '.join(_ALGORITHMS)}")
        files = self.storage.files
        source = files.open_now(src_path, "rb")
        try:
            target = files.open_now(dst_path, "wb")
            try:
                for piece in decompress(_read(source), _ALGORITHMS[algo]):
                    target.write_now(piece)
                target.commit_now()
            except BaseException:
                target.abort()
                raise
        finally:
            source.abort()

    # --- sessions -------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Start of a session: nothing of the one before runs on, and its password is worth nothing."""
        super().reset()
        self._password = ""

    def close(self) -> None:
        """End of the session: stop, then let the storage remove what was put there."""
        try:
            super().close()
        finally:
            self._password = ""

    def _running(self) -> Tgtd:
        if self._tgtd is None:
            raise IscsiTargetError("the iSCSI target does not run: start it first")
        return self._tgtd

    def _chap_password(self) -> str:
        if self.chap_password is not None:
            return self.chap_password
        if not self._password:
            self._password = self._read_password() if self.chap_password_file else secrets.token_hex(8)
        return self._password

    def _read_password(self) -> str:
        assert self.chap_password_file is not None
        where = f"field chap_password_file: {self.chap_password_file}"
        try:
            password = Path(self.chap_password_file).read_text().strip()
        except OSError as error:
            raise ConfigurationError(f"{where} cannot be read: {error.strerror or error}") from error
        _check_password(password, where)
        return password

    def _open_file(self, file_path: str, size: int) -> tuple[int, str]:
        clean = clean_path(file_path)
        if not clean:
            raise ValueError("file_path must name a file below the storage's root")
        files = self.storage.files
        try:
            fd = files.beneath.open(clean, os.O_RDWR | os.O_NONBLOCK)
        except FileNotFoundError:
            if not size:
                raise FileNotFoundError(
                    f"{clean} is not in the storage: upload it first, or give size_mb to make an empty disk"
                ) from None
            # Made as an upload would be, then grown.
            empty = files.open_now(clean, "wb")
            empty.commit_now()
            self.storage.register_path(clean)
            fd = files.beneath.open(clean, os.O_RDWR | os.O_NONBLOCK)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise ValueError(f"{clean} is not a file")
            if size and found.st_size > size:
                self.logger.warning("%s has %d bytes, more than size_mb says: all are offered", clean, found.st_size)
            whole = -(-max(size, found.st_size) // _SECTOR) * _SECTOR
            if not whole:
                raise ValueError(f"{clean} is empty: give size_mb")
            if whole != found.st_size:
                os.ftruncate(fd, whole)
        except BaseException:
            os.close(fd)
            raise
        return fd, os.path.join(self.root_dir, clean)

    def _open_block(self, path: str) -> tuple[int, str]:
        if not os.path.isabs(path):
            raise ValueError(f"block device {path} must be given with its absolute path")
        real = os.path.realpath(path)
        if real not in {os.path.realpath(allowed) for allowed in self.block_device_allowlist}:
            raise PermissionError(f"block device {path} is not in the configuration's block_device_allowlist")
        # O_EXCL: not one that is mounted, or otherwise in use by this host.
        try:
            fd = os.open(real, os.O_RDWR | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise OSError(
                errno.EBUSY, f"block device {path} is in use on the exporter (mounted, or part of LVM or RAID)"
            ) from None
        if not stat.S_ISBLK(os.fstat(fd).st_mode):
            os.close(fd)
            raise ValueError(f"{path} is not a block device")
        return fd, real


def _read(file: LocalFile) -> Iterator[bytes]:
    while data := file.read_now():
        yield data


def _check_password(password: str, where: str) -> None:
    least, most = _PASSWORD_LENGTH
    if not least <= len(password) <= most or not re.fullmatch(r"[!-+.-~-]+", password):
        raise ConfigurationError(f"{where}: a CHAP password has {least} to {most} printable characters and no comma")


def _check_initiator(initiator: str) -> None:
    if initiator.startswith(("iqn.", "eui.", "naa.")) and not re.search(r"[\s,]", initiator):
        return
    try:
        ipaddress.ip_network(initiator, strict=False)
    except ValueError:
        raise ConfigurationError(
            f"field allowed_initiators: {initiator} is no address, network or iSCSI name (iqn....)"
        ) from None
