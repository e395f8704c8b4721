# SPDX-License-Identifier: Apache-2.0
"""Keeps the one test guest of a pytest run: ``python guest_keeper.py FOLDER PID``.

Boots it and writes FOLDER/state.json ({"port", "qmp"} or {"error"}); FOLDER/console.log holds what it says. It ends
when process PID, the pytest that started all workers, has ended, however that came about, or on SIGTERM. QEMU ends
with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from guest_files import HERE, GuestFiles, guest_files

BOOT_TIMEOUT = 180.0
PR_SET_PDEATHSIG = 1


def qemu_arguments(files: GuestFiles, folder: Path) -> list[str]:
    """Command line of the guest. TCG always: that /dev/kvm exists does not mean that it works."""
    words = (
        "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off net.ifnames=0 random.trust_cpu=on "
        f"guest.modules={files.modules} guest.start={HERE / 'guest_start.sh'} guest.python={sys.executable}"
    )
    return [
        "qemu-system-x86_64",
        *("-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "1G"),
        *("-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"),
        *("-kernel", str(files.kernel), "-initrd", str(files.initramfs), "-append", words),
        *("-qmp", f"unix:{folder / 'qmp'},server=on,wait=off"),
        *("-netdev", "user,id=net,hostfwd=tcp:127.0.0.1:0-:5000", "-device", "virtio-net-pci,netdev=net,romfile="),
        *("-device", "virtio-rng-pci", "-device", "qemu-xhci,id=usb,p2=15,p3=15"),
        # Two views of this machine: one that the guest may cache, one that it may not.
        *("-fsdev", "local,id=host,path=/,readonly=on,security_model=none,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
        *("-fsdev", "local,id=live,path=/,readonly=on,security_model=none,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=live,mount_tag=live"),
    ]


def die_with_keeper() -> None:
    """In QEMU's process before it is QEMU: the kernel shall kill it when the keeper dies, SIGKILL included."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def report(folder: Path, **state: object) -> None:
    temporary = folder / "state.new"
    temporary.write_text(json.dumps(state))
    temporary.rename(folder / "state.json")


def agent_port(folder: Path) -> int:
    """Port of this machine behind which the guest's agent is."""
    from guest_machine import Qmp, forwarded_ports

    with Qmp(folder) as qmp:
        return forwarded_ports(qmp)[5000]


def keep(folder: Path, pytest_gone: int) -> None:
    """Boot, report, wait for the end."""
    files = guest_files()
    log = (folder / "console.log").open("wb", buffering=0)
    with subprocess.Popen(
        qemu_arguments(files, folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=die_with_keeper,
    ) as qemu:
        assert qemu.stdout is not None
        console = qemu.stdout.fileno()
        try:
            started = time.monotonic()
            seen = b""
            booted = False
            while True:
                left = None if booted else max(0.0, started + BOOT_TIMEOUT - time.monotonic())
                ready, _, _ = select.select([console, pytest_gone], [], [], left)
                if pytest_gone in ready:
                    return
                data = os.read(console, 65536) if ready else b""
                log.write(data)
                seen += data if not booted else b""
                if not booted and b"guest agent: ready" in seen:
                    booted = True
                    report(folder, port=agent_port(folder), qmp=str(folder / "qmp"), seconds=time.monotonic() - started)
                elif not data:
                    why = "has ended" if ready else f"was not ready after {BOOT_TIMEOUT:.0f} s"
                    report(folder, error=f"the test guest {why}: {seen[-2000:].decode(errors='replace')}")
                    return
        finally:
            qemu.kill()


def main() -> None:
    """Never leaves whoever waits without an answer."""
    folder, pid = Path(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        pytest_gone = os.pidfd_open(pid)
        keep(folder, pytest_gone)
    except Exception as error:  # the tests that wait must hear of it, whatever it is
        report(folder, error=f"the test guest could not be started: {type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    main()
