#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Build the disk image of the virt-x86 reference board: a Debian root with systemd, python3 and sshd, bootable alone.

A DOS-partitioned disk: a FAT partition with SYSLINUX, kernel and initramfs, and an ext4 root made by mmdebstrap. The
serial console asks for a login (root and the password below), ssh takes the key that is made beside the image. Runs as
root, or as a user when fakeroot and uidmap are installed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from labimages.artifact import CACHE, IMAGES, build_once, locked
from labimages.cpio import CpioWriter
from labimages.debian import SUITE, PackageCache, sources
from labimages.disk import FAT16_LBA, LINUX, MIB, Partition, create_disk, make_fat
from labimages.errors import BuildError
from labimages.modules import load_order
from labimages.overlay import Overlay
from labimages.tools import require, run

HOSTNAME = "virt-x86"
# Known to everyone on purpose: the image is a demo and its network is QEMU's own, reachable from this machine only.
ROOT_PASSWORD = "jumpstarter"
BOOT = Partition(MIB, 31 * MIB, FAT16_LBA, bootable=True)
ROOT_START = 32 * MIB
ROOT_SIZE = 480 * MIB
FILES = Path(__file__).resolve().parent / "files" / "virt-x86"
MBR = Path("/usr/lib/syslinux/mbr/mbr.bin")
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng")
PACKAGES = ("systemd-sysv", "udev", "dbus", "openssh-server", "python3", "iproute2", "login", "passwd")
EPOCH = 1_700_000_000  # any fixed time after the packages' own, so that no unit thinks its caches are stale

# Documentation and translations a test device does not need.
EXCLUDED = ("/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/lintian/*")
INCLUDED = ("/usr/share/doc/*/copyright",)

# Units that cost boot time under emulation and that no test device needs.
MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "modprobe@.service",
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-binfmt.service",
    "systemd-modules-load.service",
    "systemd-networkd-wait-online.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-remount-fs.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-udev-settle.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
)

SSHD = """\
# Keys only, and no PAM session: under emulation pam_systemd costs seconds at every login.
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
UseDNS no
HostKey /etc/ssh/ssh_host_ed25519_key
"""
NETWORK = """\
[Match]
Name=eth*
[Network]
DHCP=ipv4
LinkLocalAddressing=no
IPv6AcceptRA=no
"""
JOURNAL = """\
[Journal]
Storage=volatile
"""


def key_pair(private: Path, comment: str) -> str:
    """Make an ed25519 key pair at *private* unless it is there, and return the public half's line."""
    public = private.with_name(private.name + ".pub")
    with locked(private.with_name(f".{private.name}.lock")):
        if private.exists() and public.exists():
            return public.read_text().strip()
        private.unlink(missing_ok=True)
        public.unlink(missing_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", private])
        return public.read_text().strip()


def overlay(path: Path, *, authorized: str, host_key: Path, marker: str) -> None:
    """Write the tar archive with everything of the device's root that is ours."""
    files = Overlay(EPOCH)
    files.file("/etc/hostname", f"{HOSTNAME}\n")
    files.file("/etc/hosts", f"127.0.0.1 localhost {HOSTNAME}\n")
    files.file("/etc/resolv.conf", "nameserver 10.0.2.3\n")  # QEMU's user network answers there
    files.file("/etc/default/locale", "LANG=C.UTF-8\n")
    files.file("/etc/motd", "")
    files.file("/etc/jumpstarter-marker", f"{marker}\n")
    # A given machine-id keeps systemd from taking this for a first boot, which presets every unit.
    files.file("/etc/machine-id", "6c616264656d6f7286000000000000ab\n", 0o444)
    files.file("/etc/systemd/network/20-wired.network", NETWORK)
    files.file("/etc/systemd/journald.conf.d/lab.conf", JOURNAL)
    files.file("/etc/ssh/sshd_config.d/lab.conf", SSHD)
    files.directory("/root/.ssh", 0o700)
    files.file("/root/.ssh/authorized_keys", authorized + "\n", 0o600)
    files.file("/etc/ssh/ssh_host_ed25519_key", host_key.read_bytes(), 0o600)
    files.file("/etc/ssh/ssh_host_ed25519_key.pub", host_key.with_name(host_key.name + ".pub").read_bytes())
    wants = "/etc/systemd/system/multi-user.target.wants"
    files.symlink(f"{wants}/systemd-networkd.service", "/lib/systemd/system/systemd-networkd.service")
    for unit in MASKED:
        files.symlink(f"/etc/systemd/system/{unit}", "/dev/null")
    files.write(path)


def root_tar(scratch: Path) -> None:
    """Have mmdebstrap write SCRATCH/rootfs.tar."""
    apt_sources = scratch / "sources.list"
    apt_sources.write_text("\n".join(sources("amd64")) + "\n")
    archives = CACHE / "mmdebstrap"
    archives.mkdir(parents=True, exist_ok=True)
    # Packages already fetched go in before the install and come back after it, so that a rebuild downloads nothing.
    hooks = [
        '--setup-hook=mkdir -p "$1"/var/cache/apt/archives/partial',
        f"--setup-hook=sync-in {archives} /var/cache/apt/archives",
        f'--customize-hook=echo root:{ROOT_PASSWORD} | chroot "$1" chpasswd -c SHA512',
        '--customize-hook=rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/resolv.conf',
        f"--customize-hook=sync-out /var/cache/apt/archives {archives}",
    ]
    dpkg = [f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED]
    dpkg += [f"--dpkgopt=path-include={pattern}" for pattern in INCLUDED]
    run(
        [
            "mmdebstrap",
            "--quiet",
            "--variant=apt",
            "--architectures=amd64",
            "--format=tar",
            "--skip=download/empty",
            '--aptopt=Acquire::Languages "none"',
            '--aptopt=Acquire::Retries "3"',
            '--aptopt=APT::Install-Recommends "false"',
            *dpkg,
            f"--include={','.join(PACKAGES)}",
            *hooks,
            SUITE,
            scratch / "rootfs.tar",
            apt_sources,
        ],
        env={"SOURCE_DATE_EPOCH": str(EPOCH), "DEBIAN_FRONTEND": "noninteractive"},
    )


def initramfs(kernel_root: Path, version: str) -> bytes:
    """The initramfs that loads the virtio modules and mounts the root; *kernel_root* holds the unpacked packages."""
    cpio = CpioWriter()
    for name in ("bin", "dev", "lib/modules", "newroot", "proc"):
        cpio.directory(name)
    cpio.character_device("dev/console", 5, 1)
    cpio.file("bin/busybox", kernel_root / "bin" / "busybox", 0o755)
    cpio.symlink("bin/sh", "busybox")
    cpio.file("init", FILES / "init", 0o755)
    order = load_order(kernel_root / "lib" / "modules" / version, MODULES)
    for module in order:
        cpio.file(f"lib/modules/{module.name}", module)
    cpio.file("lib/modules/order", "".join(f"{module.name}\n" for module in order).encode())
    return cpio.compressed()


def build(output: Path, *, authorized: str, host_key: Path, marker: str) -> dict[str, Any]:
    """Write the disk to *output* and return its facts."""
    require("mmdebstrap", "mke2fs", "mformat", "mcopy", "mmd", "syslinux")
    pack: list[str | Path] = ["sh", FILES / "pack.sh"]
    if os.geteuid() != 0:
        require("fakeroot", "newuidmap")
        pack.insert(0, "fakeroot")
    packages = PackageCache(CACHE / "debian", "amd64")
    kernel = packages.dependency("linux-image-cloud-amd64", r"linux-image-[0-9].*-cloud-amd64")
    version = kernel.removeprefix("linux-image-")
    with tempfile.TemporaryDirectory(prefix=".virt-x86.", dir=output.parent) as name:
        scratch = Path(name)
        root_tar(scratch)
        overlay(scratch / "overlay.tar", authorized=authorized, host_key=host_key, marker=marker)
        ext4 = scratch / "root.ext4"
        run([*pack, scratch, ext4, str(ROOT_SIZE // MIB)], env={"E2FSPROGS_FAKE_TIME": str(EPOCH)})
        unpacked = scratch / "kernel"
        packages.unpack(unpacked, kernel, "busybox-static")
        root = Partition(ROOT_START, ROOT_SIZE, LINUX)
        create_disk(output, ROOT_START + ROOT_SIZE, [BOOT, root], signature=0x4A4C_0086, boot_code=MBR.read_bytes())
        files: dict[str, Path | bytes] = {
            "vmlinuz": unpacked / "boot" / f"vmlinuz-{version}",
            "initrd.gz": initramfs(unpacked, version),
            "syslinux.cfg": FILES / "syslinux.cfg",
        }
        make_fat(output, BOOT, files, label="LABBOOT", serial=0x4A4C_8600)
        run(["syslinux", "--install", "--offset", str(BOOT.start), output])
        # dd knows how to leave zeros as holes, which copying in Python would have to do by hand.
        run(["dd", f"if={ext4}", f"of={output}", "bs=1M", f"seek={ROOT_START // MIB}", "conv=sparse,notrunc"])
    return {
        "board": "virt-x86",
        "hostname": HOSTNAME,
        "kernel": version,
        "marker": marker,
        "user": "root",
        "password": ROOT_PASSWORD,
        "host_key": " ".join(host_key.with_name(host_key.name + ".pub").read_text().split()[:2]),
    }


def main(argv: list[str] | None = None) -> int:
    """Command line; prints the image's path, exit code 1 and one line when it cannot be built."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--marker", default="jumpstarter-lab-demo", help="content of /etc/jumpstarter-marker")
    parser.add_argument("--output", type=Path, default=IMAGES / "virt-x86.img", help="image to write")
    parser.add_argument("--ssh-key", type=Path, help="public key for root (default: a pair is made beside the image)")
    parser.add_argument("--force", action="store_true", help="build again although nothing changed")
    args = parser.parse_args(argv)
    output = args.output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        require("ssh-keygen")
        host_key = output.with_suffix(".hostkey")
        host_line = key_pair(host_key, HOSTNAME)
        authorized = args.ssh_key.read_text().strip() if args.ssh_key else key_pair(output.with_suffix(".key"), "lab")
        options = {"marker": args.marker, "authorized": authorized, "host": host_line}
        facts, built = build_once(
            HOSTNAME,
            output,
            options,
            lambda path: build(path, authorized=authorized, host_key=host_key, marker=args.marker),
            force=args.force,
        )
    except (BuildError, OSError) as error:
        print(f"virt-x86 image: {error}", file=sys.stderr)
        return 1
    print(f"{output} ({'built' if built else 'up to date'}; Linux {facts['kernel']}, marker {facts['marker']})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
