# SPDX-License-Identifier: Apache-2.0
"""tgtd, the userspace iSCSI target of the Linux SCSI target framework (Debian package ``tgt``), on a port of its own.

It is managed through its socket, whose requests are those that ``tgtadm`` sends (tgt 1.0.85): that program would take
passwords as arguments, which every user of the host can read.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import struct
import tempfile
import time
from pathlib import Path
from typing import Final

from jumpstarter.common.process import Process, spawn

__all__ = ["IscsiTargetError", "Tgtd"]

_TARGET: Final = 1
"""Id of the only target."""
_TIMEOUT: Final = 10.0
_PREFIX: Final = "jumpstarter-iscsi-"
_STALE_SECONDS: Final = 60.0

# Modes and operations of a request.
_TARGETS, _UNITS, _PORTALS, _ACCOUNTS = 1, 2, 3, 7
_NEW, _DELETE, _SHOW, _BIND = 0, 1, 2, 3

_NO_ID, _NO_LUN = -1, (1 << 64) - 1
#: mode, op, driver, length, target, session, unit, connection, host, device type, account direction, pack, force
_REQUEST: Final = struct.Struct("<II64sIiQQIIIIII")
_RESPONSE: Final = struct.Struct("<II")

_ERRORS: Final = (
    "success", "unknown error", "out of memory", "no such driver", "no such target", "no such unit", "no such session",
    "no such connection", "the target exists already", "the unit exists already", "the rule exists already",
    "no such rule", "the account exists already", "no such account", "too many accounts", "it refuses the request",
    "the target has an outgoing account already", "the target is in use", "the unit is in use",
    "it cannot do that", "unknown parameter",
)  # fmt: skip


class IscsiTargetError(Exception):
    """The iSCSI target did not do what it was asked for."""


class Tgtd:
    """A tgtd with one target. It ends with the exporter, however that ends.

    program: path or name. host, port: where it listens. Raises from `start`: OSError when the program is missing or
    the address cannot be had.
    """

    def __init__(self, program: str, host: str, port: int, logger: logging.Logger) -> None:
        self.host, self.port = host, port
        self._program = program
        self._logger = logger
        self._process: Process | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def running(self) -> bool:
        """Whether it runs; False as well when it has died."""
        return self._process is not None and self._process.running

    def start(self) -> None:
        """Run it and wait until it listens."""
        program = shutil.which(self._program)
        if program is None:
            raise FileNotFoundError(
                f"the iSCSI target {self._program} is not installed on the exporter (Debian: apt-get install tgt)"
            )
        # It says that it cannot bind only in its log, and runs on: asking first gives the better error.
        self.port = _free(self.host, self.port)
        _sweep()
        self._folder = tempfile.TemporaryDirectory(prefix=_PREFIX)
        environment = {**os.environ, "TGT_IPC_SOCKET": os.path.join(self._folder.name, "s")}
        host = f"[{self.host}]" if ":" in self.host else self.host
        command = [program, "-f", "--iscsi", f"portal={host}:{self.port}"]
        self._process = spawn(command, name="tgtd", env=environment, on_stderr=self._said)
        try:
            self._wait_until_it_listens(f":{self.port},")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it; initiators lose their disks. Nothing happens when it does not run."""
        process, self._process = self._process, None
        folder, self._folder = self._folder, None
        if process is not None:
            # It ignores SIGTERM while it has a target. What initiators have written is in the files already.
            process.stop(0)
        if folder is not None:
            folder.cleanup()

    def make_target(self, iqn: str, account: tuple[str, str] | None, initiators: list[str]) -> None:
        """The target. account: CHAP user and password that initiators must show. initiators: names ("iqn....") and
        addresses of those that may log in."""
        self._ask(_TARGETS, _NEW, f"targetname={iqn}", tid=_TARGET)
        if account is not None:
            self._ask(_ACCOUNTS, _NEW, f"user={account[0]},password={account[1]}")
            self._ask(_ACCOUNTS, _BIND, f"user={account[0]}", tid=_TARGET)
        # Last: from here on it can be used.
        for initiator in initiators:
            kind = "name" if initiator.startswith(("iqn.", "eui.", "naa.")) else "address"
            self._ask(_TARGETS, _BIND, f"initiator-{kind}={initiator}", tid=_TARGET)

    def add(self, lun: int, path: str) -> None:
        """Offer a file or block device."""
        self._ask(_UNITS, _NEW, f"path={path}", tid=_TARGET, lun=lun)

    def remove(self, lun: int) -> None:
        """Take it away, also from who uses it."""
        self._ask(_UNITS, _DELETE, tid=_TARGET, lun=lun, force=1)

    def _wait_until_it_listens(self, portal: str) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _TIMEOUT
        while True:
            try:
                found = self._ask(_PORTALS, _SHOW)
            except (ConnectionRefusedError, FileNotFoundError):
                found = ""
            if portal in found:
                return
            if not self._process.running:
                raise OSError(f"tgtd did not start: {self._process.describe()}")
            if "unable to bind" in self._process.stderr_tail or time.monotonic() > deadline:
                raise OSError(f"tgtd does not listen on {self.host} port {self.port}: {self._process.last_line}")
            time.sleep(0.02)  # its socket appears without a word

    def _ask(self, mode: int, op: int, text: str = "", *, tid: int = -1, lun: int = _NO_LUN, force: int = 0) -> str:
        if self._folder is None or self._process is None:
            raise IscsiTargetError("the iSCSI target does not run: start it first")
        if not self._process.running:
            raise IscsiTargetError(f"the iSCSI target has ended: {self._process.describe()}")
        data = text.encode() + b"\0" if text else b""
        head = _REQUEST.pack(
            mode, op, b"iscsi", _REQUEST.size + len(data), tid, 0, lun, 0, 0, 0, 0, 0, force
        )  # fmt: skip
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(_TIMEOUT)
            peer.connect(os.path.join(self._folder.name, "s.0"))
            peer.sendall(head + data)
            with peer.makefile("rb") as answer:
                said = answer.read(_RESPONSE.size)
                if len(said) < _RESPONSE.size:
                    raise IscsiTargetError("the iSCSI target gave no answer")
                code, length = _RESPONSE.unpack(said)
                rest = answer.read(max(0, length - _RESPONSE.size)).decode(errors="replace")
        if code:
            raise IscsiTargetError(f"the iSCSI target: {_ERRORS[code] if code < len(_ERRORS) else f'error {code}'}")
        return rest

    def _said(self, line: str) -> None:
        self._logger.debug("%s", line)


def _sweep() -> None:
    """Remove the folders of exporters that were killed: those with a socket at which nobody listens."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            found = folder.lstat()
            if found.st_uid != os.geteuid() or time.time() - found.st_mtime < _STALE_SECONDS:
                continue  # another user's, or one that is just being made
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(_TIMEOUT)
                peer.connect(str(folder / "s.0"))
        except ConnectionRefusedError:
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # it has just gone, or is not ours to judge


def _free(host: str, port: int) -> int:
    """A port that can be listened on: this one, or for 0 any. Raises OSError saying where and why not."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise type(error)(error.errno, f"cannot listen on {host} port {port} (iSCSI): {reason}") from None
        return int(probe.getsockname()[1])
