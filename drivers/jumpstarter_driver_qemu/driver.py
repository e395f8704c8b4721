# SPDX-License-Identifier: Apache-2.0
"""A virtual board: QEMU with a power switch, a disk to flash, a console, a screen and forwarded ports."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.common.storage import format_sizes, parse_size
from jumpstarter.driver import Driver, export
from jumpstarter.driver.calls import call_to_end
from jumpstarter_driver_pyserial.driver import PySerial
from jumpstarter_driver_qemu.cloudinit import write_cidata
from jumpstarter_driver_qemu.command import Layout, command_line
from jumpstarter_driver_qemu.disks import Disks, check_space
from jumpstarter_driver_qemu.errors import MachineBusy, MachineError
from jumpstarter_driver_qemu.flasher import QemuFlasher
from jumpstarter_driver_qemu.machine import VirtualMachine
from jumpstarter_driver_qemu.network import ForwardedTcp, ForwardedUdp, Screen
from jumpstarter_driver_qemu.power import QemuPower
from jumpstarter_driver_qemu.settings import (
    ACCELERATORS,
    DEFAULT_CPU,
    MACHINES,
    PARTITIONS,
    Disk,
    Hostfwd,
    check_arch,
    native_arch,
)

__all__ = ["QEMU", "Disk", "Hostfwd", "Qemu", "QemuFlasher", "QemuPower"]

_RESERVED = ("power", "flasher", "console", "vnc")
_MIB = 1 << 20


@dataclass(kw_only=True)
class Qemu(Driver):
    """A virtual machine as a device under test.

    arch: QEMU's name of the architecture (this host's by default). machine, cpu: QEMU's names; by default a "virt" or
    "q35" board and a CPU that emulation can do. smp: CPUs. mem: memory ("512M", plain numbers are MiB).
    accel: "tcg" (emulation) unless the lab knows that acceleration works on its hosts: that /dev/kvm exists does not
    mean that guests run on it.

    hostname, username, password: what cloud-init in the image is told (cloud_init: false leaves that disk out).
    default_partitions: images by partition name (root, bios, OVMF_CODE.fd, OVMF_VARS.fd); only ever read.
    disk_size: what the disk holds at least; it grows at power on and never shrinks.
    disk: keep the disk between sessions, as a real board does: {size, path}. state_dir: directory of a kept board; by
    default one of its own under $XDG_STATE_HOME/jumpstarter-lab.

    hostfwd: ports of the guest by child name; `ssh` to guest port 22 is always there. vnc: false for no screen.
    powerdown_timeout: seconds that `power off` waits for the guest after pressing its power button; 0 pulls the plug.
    start_timeout: seconds that QEMU may take to start. flash_timeout: seconds that an image may take which the exporter
    fetches itself. insecure_registries: registries (``host:port``) whose images are fetched by plain HTTP.
    fls_version, fls_allow_custom_binaries, fls_custom_binary_url: taken from existing configurations, without effect:
    the exporter fetches images from registries itself. extra_args: more arguments for QEMU.
    """

    driver_type: ClassVar[str] = "composite"

    arch: str = field(default_factory=native_arch)
    machine: str | None = None
    accel: str = "tcg"
    cpu: str | None = None
    smp: int = 2
    mem: str | int = "512M"

    hostname: str = "demo"
    username: str = "jumpstarter"
    password: str = field(default="password", repr=False)
    cloud_init: bool = True

    default_partitions: dict[str, Path] = field(default_factory=dict)
    disk_size: str | int | None = None
    disk: Disk | None = None
    state_dir: str | None = None

    hostfwd: dict[str, Hostfwd] = field(default_factory=dict)
    vnc: bool = True
    powerdown_timeout: float = 3.0
    start_timeout: float = 30.0
    flash_timeout: float = 1800.0
    insecure_registries: list[str] = field(default_factory=list)
    fls_version: str | None = None
    fls_allow_custom_binaries: bool = False
    fls_custom_binary_url: str | None = None
    extra_args: list[str] = field(default_factory=list)

    _machine: VirtualMachine | None = field(init=False, default=None, repr=False)
    _lock: threading.RLock = field(init=False, default_factory=threading.RLock, repr=False)
    _writing: str | None = field(init=False, default=None, repr=False)

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_qemu.client.QemuClient"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check()
        self._disks = self._make_disks()
        self._disks.require_bios()
        self.children["power"] = QemuPower(parent=self)
        self.children["flasher"] = QemuFlasher(
            parent=self,
            disks=self._disks,
            state_dir=str(self._disks.directory),
            insecure_registries=self.insecure_registries,
            labels={"jumpstarter.dev/name": "flasher"},  # what its messages call it
        )
        runtime = self._disks.runtime_path
        self._console = PySerial(url=f"unix-listen://{runtime / 'console'}", check_present=False)
        self._console.hub.explain_absence = self._off
        self.children["console"] = self._console
        if self.vnc:
            self.children["vnc"] = Screen(path=str(runtime / "vnc"), require_on=self.require_on)
        self._ports: dict[str, ForwardedTcp | ForwardedUdp] = {}
        for name, forward in self.hostfwd.items():
            kind = ForwardedTcp if forward.protocol == "tcp" else ForwardedUdp
            self._ports[name] = kind(host=forward.hostaddr, port=forward.hostport, require_on=self.require_on)
        self.children.update(self._ports)

    # --- exported ----------------------------------------------------------------------------------------------

    @export(readonly=True)
    def get_hostname(self) -> str:
        """Host name the image was told."""
        return self.hostname

    @export(readonly=True)
    def get_username(self) -> str:
        """Login name the image was told."""
        return self.username

    @export(readonly=True)
    def get_password(self) -> str:
        """Password of that login."""
        return self.password

    @export
    def set_disk_size(self, size: str) -> None:
        """Let the disk hold ``size`` ("20G") from the next power on.

        Raises ValueError when it would shrink or has no space to grow.
        """
        wanted = parse_size(size)
        with self._lock:
            present = self._disks.virtual_size() or 0
            if wanted < present:
                first, second = format_sizes(present, wanted)
                raise ValueError(f"the disk holds {first} and cannot shrink to {second}: data would be lost")
            check_space(self._disks.file("root"), wanted - present)
            self._disks.size = wanted

    @export
    def set_memory_size(self, size: str) -> None:
        """Give the machine ``size`` memory ("2G") from the next power on. Raises ValueError for no size."""
        _mebibytes(size)
        self.mem = str(size)

    @export(readonly=True)
    def info(self) -> dict[str, Any]:
        """State of the machine: "on" or "off", why it is off, process id, and what it is made of."""
        machine = self._machine
        return {
            "state": "on" if self.running else "off",
            "why_off": "" if self.running else self._why_off(),
            "pid": machine.process.pid if machine is not None and machine.running else None,
            "arch": self.arch,
            "machine": self._board(),
            "accel": self.accel,
            "cpu": self._cpu(),
            "smp": self.smp,
            "memory": _mebibytes(self.mem) * _MIB,
            "disk_size": self._disks.size,
            "ports": {name: port.port for name, port in self._ports.items()},
        }

    # --- for the children --------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """True while the QEMU process lives."""
        machine = self._machine
        return machine is not None and machine.running

    def require_on(self) -> None:
        """Raise MachineBusy, with the reason, when the machine is off."""
        if reason := self._off():
            raise MachineBusy(reason)

    def _off(self) -> str:
        """Why the machine is off, empty when it is on."""
        return "" if self.running else f"the virtual machine is off: {self._why_off()}; power it on first"

    async def start(self) -> None:
        """Power on; see `QemuPower.on`."""
        if self.running:
            self.logger.info("power on: the virtual machine is already running")
            return
        self._disks.make_runtime()
        await self._console.ensure_open()  # QEMU connects to it before its CPUs run: no byte of output is lost
        await call_to_end(self._start)  # cancelled, too: what comes next must not be overtaken by it

    async def stop(self) -> None:
        """Power off; see `QemuPower.off`."""
        await call_to_end(self._stop, self.powerdown_timeout)

    def halt(self) -> None:
        """Power off at once, from any thread."""
        self._stop(0)

    @contextmanager
    def exclusive(self, what: str) -> Iterator[None]:
        """Keep the machine off while its files are in use. Raises MachineBusy when it runs or is being written to."""
        with self._lock:
            if self.running:
                raise MachineBusy(f"cannot {what}: the virtual machine is running; power it off first")
            if self._writing is not None:
                raise MachineBusy(f"cannot {what}: another call is busy with {self._writing!r}")
            self._writing = what
        try:
            yield
        finally:
            with self._lock:
                self._writing = None

    # --- life --------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Called at the start of a session."""
        self._disks.open()
        super().reset()

    def close(self) -> None:
        """End the machine; leave no process, socket or session file behind."""
        try:
            self.halt()
        finally:
            super().close()
            self._disks.close()

    def _start(self) -> None:
        with self._lock:
            if self.running:
                return
            if self._writing is not None:
                raise MachineBusy(f"cannot power on: {self._writing!r} is not finished")
            argv = command_line(self._layout())
            try:
                machine = VirtualMachine(
                    argv, logger=self.logger, start_timeout=self.start_timeout, on_exit=self._ended
                )
            except MachineError as error:
                made_of = f"machine {self._board()}, accel {self.accel}, cpu {self._cpu() or 'default'}"
                raise MachineError(f"cannot power on: {error.message} ({made_of})") from None
            try:
                self._note_ports(machine)
                machine.go()
            except BaseException:
                machine.stop()
                raise
            self._machine = machine
            self.logger.info("power on: %s, pid %d", machine.process.name, machine.process.pid)

    def _stop(self, graceful: float) -> None:
        with self._lock:  # not before a start in progress has come to its end
            machine = self._machine
        if machine is not None:
            machine.stop(graceful)

    def _ended(self, machine: VirtualMachine) -> None:
        for name, port in self._ports.items():
            port.port = self.hostfwd[name].hostport

    def _note_ports(self, machine: VirtualMachine) -> None:
        """Find out which ports QEMU took for those it was left to choose."""
        taken = machine.forwards()
        for name, forward in self.hostfwd.items():
            for entry in taken:
                protocol, _, host_port, guest_port = entry
                same = (protocol, guest_port) == (forward.protocol, forward.guestport)
                if same and forward.hostport in (0, host_port):
                    self._ports[name].port = host_port
                    taken.remove(entry)
                    break

    def _layout(self) -> Layout:
        runtime = self._disks.make_runtime()
        cidata = None
        if self.cloud_init:
            cidata = write_cidata(
                runtime / "cidata",
                instance_id=str(self.uuid),
                hostname=self.hostname,
                username=self.username,
                password=self.password,
            )
        return Layout(
            arch=self.arch,
            machine=self._board(),
            accel=self.accel,
            cpu=self._cpu(),
            smp=self.smp,
            memory=_mebibytes(self.mem),
            console=runtime / "console",
            vnc=runtime / "vnc" if self.vnc else None,
            bios=self._disks.firmware("bios"),
            uefi_code=self._disks.firmware("OVMF_CODE.fd"),
            uefi_vars=self._disks.variables(),
            root=self._disks.root(),
            cidata=cidata,
            hostfwd=tuple(forward.rule() for forward in self.hostfwd.values()),
            extra=tuple(self.extra_args),
        )

    def _board(self) -> str:
        return self.machine or MACHINES.get(self.arch, "none")

    def _cpu(self) -> str:
        if self.cpu is not None:
            return self.cpu
        return DEFAULT_CPU.get(self.arch, "") if self.accel.partition(",")[0] == "tcg" else "host"

    def _why_off(self) -> str:
        return self._machine.why_off if self._machine is not None else "it was not switched on in this session"

    # --- configuration -----------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Convert and check the fields. Raises ValueError naming the field."""
        self.default_partitions = {name: Path(path).expanduser() for name, path in self.default_partitions.items()}
        for name in self.default_partitions:
            if name not in PARTITIONS:
                raise ValueError(f"default_partitions.{name}: no such partition; there is {', '.join(PARTITIONS)}")
        check_arch(self.arch)
        if self.accel.partition(",")[0] not in ACCELERATORS:
            raise ValueError(
                f'accel: {self.accel!r} is none of {", ".join(ACCELERATORS)}; emulation ("tcg") works everywhere, and '
                "nothing but a run of your guest proves that another one does"
            )
        if self.smp < 1:
            raise ValueError(f"smp: {self.smp} is not above zero")
        for name in ("powerdown_timeout", "start_timeout", "flash_timeout"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is negative")
        _mebibytes(self.mem)
        if isinstance(self.disk, Mapping):
            self.disk = _from_mapping(Disk, "disk", self.disk)
        forwards = {"ssh": Hostfwd(guestport=22)} | {
            name: _from_mapping(Hostfwd, f"hostfwd.{name}", value) if isinstance(value, Mapping) else value
            for name, value in self.hostfwd.items()
        }
        for name, forward in forwards.items():
            if name in _RESERVED:
                raise ValueError(f"hostfwd.{name}: the name belongs to a child driver of every machine")
            forward.check(name)
        self.hostfwd = forwards

    def _make_disks(self) -> Disks:
        size_text = self.disk.size if self.disk is not None and self.disk.size is not None else self.disk_size
        size = None if size_text is None else _size("disk.size" if self.disk is not None else "disk_size", size_text)
        kept: Path | None = None
        root: Path | None = None
        if self.disk is not None or self.state_dir is not None:
            if self.disk is not None and self.disk.path is not None:
                root = Path(self.disk.path).expanduser().absolute()
            if self.state_dir is not None:
                kept = Path(self.state_dir).expanduser().absolute()
            elif root is not None:
                kept = root.with_name(root.name + ".state")
            else:
                kept = self._state_home()
        return Disks(golden=self.default_partitions, kept=kept, root=root, size=size)

    def _state_home(self) -> Path:
        """Directory of this board, found again by the driver id that an exporter's configuration gives."""
        if self.uuid.version != 5:
            raise ConfigurationError(
                "disk: set disk.path or state_dir (only an exporter's configuration has a default)"
            )
        home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        return Path(home).expanduser().absolute() / "jumpstarter-lab" / f"{self.hostname}-{self.uuid.hex[:12]}"


@dataclass(kw_only=True)
class QEMU(Qemu):
    """The same machine under the short names that the introduction to drivers uses.

    image_path: the disk image, only ever read. memory: as `mem`. cpu_cores: as `smp`.
    """

    image_path: str | None = None
    memory: str | int | None = None
    cpu_cores: int | None = None

    def __post_init__(self) -> None:
        if self.image_path is not None:
            self.default_partitions = {**self.default_partitions, "root": Path(self.image_path)}
        if self.memory is not None:
            self.mem = self.memory
        if self.cpu_cores is not None:
            self.smp = self.cpu_cores
        super().__post_init__()


def _size(what: str, value: str | int) -> int:
    try:
        size = parse_size(value)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    if size <= 0:
        raise ValueError(f"{what}: {value!r} is not above zero")
    return size


def _mebibytes(value: str | int) -> int:
    """Memory in MiB; a plain number is MiB, as on QEMU's own command line."""
    plain = str(value).strip().isdigit()
    size = _size("mem", f"{value}M" if plain else value)
    if size < _MIB:
        raise ValueError(f"mem: {value!r} is less than 1 MiB")
    return size // _MIB


def _from_mapping(kind: Any, what: str, value: Mapping[str, Any]) -> Any:
    """Build a settings object of a plain mapping, as a driver made in a test gets it."""
    known = [f.name for f in dataclasses.fields(kind)]
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise ValueError(f"{what}.{unknown[0]}: no such field; there is {', '.join(known)}")
    try:
        return kind(**value)
    except TypeError as error:
        raise ValueError(f"{what}: {error}") from None
