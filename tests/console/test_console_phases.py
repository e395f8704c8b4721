# SPDX-License-Identifier: Apache-2.0
"""Protects: the phase of a device is told correctly from what it prints, in whatever pieces that arrives."""

from __future__ import annotations

import pytest

from jumpstarter_agent.console.phases import Phase, PhaseTracker

UBOOT = (
    b"\r\n\r\nU-Boot 2023.01+dfsg-2+deb12u1 (Feb 20 2024 - 21:34:09 +0000)\r\n\r\nDRAM:  512 MiB\r\n"
    b"Net:   No ethernet found.\r\nHit any key to stop autoboot:  2 \b\b\b 1 \b\b\b 0 \r\n"
)
KERNEL = (
    b"## Flattened Device Tree blob\r\n\r\nStarting kernel ...\r\n\r\n"
    b"[    0.000000] Booting Linux on physical CPU 0x0000000000 [0x411fd070]\r\n"
    b"[    0.000000] Linux version 6.1.0-56-cloud-arm64 (debian-kernel@lists.debian.org) (gcc-12)\r\n"
    b"[    1.234567] Run /init as init process\r\n"
)
LOGIN = b"\r\nDebian GNU/Linux 12 board ttyS0\r\n\r\nboard login: "
PASSWORD = b"root\r\nPassword: "
SHELL = b"\r\nLinux board 6.1.0\r\n\x1b[?2004hroot@board:~# "


def _fed(*texts: bytes, size: int = 10_000) -> PhaseTracker:
    tracker = PhaseTracker()
    seq = 0
    # Each text by itself: a device waits at its prompts.
    for data in texts:
        for at in range(0, len(data), size):
            part = data[at : at + size]
            seq += len(part)
            tracker.feed(part, seq)
    return tracker


@pytest.mark.parametrize("size", [1, 3, 64, 10_000])
def test_a_whole_boot_in_order(size: int) -> None:
    tracker = _fed(UBOOT, KERNEL, LOGIN, PASSWORD, SHELL, size=size)
    assert [record.phase for record in tracker.records] == [
        Phase.BOOTLOADER,
        Phase.KERNEL,
        Phase.LOGIN,
        Phase.PASSWORD,
        Phase.SHELL,
    ]
    assert tracker.phase is Phase.SHELL
    assert tracker.bootloader_version == "U-Boot 2023.01+dfsg-2+deb12u1"
    assert tracker.kernel_version == "6.1.0-56-cloud-arm64"
    assert tracker.prompt_seq == len(UBOOT + KERNEL + LOGIN + PASSWORD + SHELL)
    times = [record.seconds for record in tracker.records]
    assert times == sorted(times)


def test_the_countdown_is_noticed_before_its_line_ends() -> None:
    assert _fed(UBOOT[: UBOOT.index(b"2 \b")] + b"2 ").autoboot_seq > 0


def test_an_spl_before_u_boot_does_not_hide_its_version() -> None:
    tracker = _fed(b"U-Boot SPL 2024.01 (x)\r\nTrying to boot from MMC1\r\n", UBOOT)
    assert tracker.bootloader_version == "U-Boot 2023.01+dfsg-2+deb12u1"
    assert tracker.boots == 0


def test_the_version_command_is_no_restart_and_a_reset_is() -> None:
    banner = b"U-Boot 2023.01+dfsg (x)\r\n"
    tracker = _fed(UBOOT, b"=> ", b"version\r\n", banner, b"=> ")
    assert (tracker.boots, tracker.phase) == (0, Phase.BOOTLOADER)
    tracker.feed(b"reset\r\nresetting ...\r\n" + banner, 10_000)
    assert tracker.boots == 1


def test_a_bootloader_after_a_shell_is_a_new_boot() -> None:
    tracker = _fed(UBOOT, KERNEL, SHELL, UBOOT)
    assert (tracker.boots, tracker.phase, tracker.kernel_version) == (1, Phase.BOOTLOADER, None)


@pytest.mark.parametrize(
    "line",
    [
        b"[   12.345678] Kernel panic - not syncing: sysrq triggered crash",
        b"[    1.0] Internal error: Oops: 0000000096000044 [#1] SMP",
        b"[    1.0] Unable to handle kernel NULL pointer dereference at virtual address 0000000000000000",
        b"[    1.0] BUG: unable to handle page fault for address: ffffffff",
        b'"Synchronous Abort" handler, esr 0x96000010',
        b"\x1b[31mKernel panic - not syncing: VFS: Unable to mount root fs\x1b[0m",
    ],
)
def test_panics(line: bytes) -> None:
    tracker = _fed(UBOOT, KERNEL, line + b"\r\n")
    assert tracker.phase is Phase.PANIC
    assert tracker.panic is not None and tracker.panic in line.decode()


@pytest.mark.parametrize("text", [b"######### ", b"Loading: ##### # ", b"T T 50% "])
def test_progress_bars_of_a_bootloader_are_no_shell(text: bytes) -> None:
    assert _fed(UBOOT, text).phase is Phase.BOOTLOADER


@pytest.mark.parametrize("ends", [(b"# \x1b[6n",), (b"# ", b"\x1b[6n"), (b"# \x1b[", b"6n"), (b"\x1b[1m# \x1b[0m",)])
def test_a_prompt_is_seen_whatever_the_terminal_is_told_behind_it(ends: tuple[bytes, ...]) -> None:
    """busybox asks where the cursor is."""
    tracker = _fed(UBOOT, KERNEL, b"\r\n", *ends)
    assert tracker.phase is Phase.SHELL
    assert tracker.prompt_seq == len(UBOOT + KERNEL) + 2 + sum(map(len, ends))


def test_a_kernel_message_after_the_prompt_does_not_change_the_phase() -> None:
    tracker = _fed(UBOOT, KERNEL, SHELL, b"[   99.000000] usb 1-1: new device\r\n")
    assert (tracker.phase, tracker.prompt_seq) == (Phase.SHELL, -1)


def test_while_frames_are_on_the_line_only_panics_and_restarts_count() -> None:
    tracker = _fed(UBOOT, KERNEL, SHELL)
    tracker.framed = True
    tracker.feed(b"12:Zm9v\r\nlogin: \r\n=> ", 5000)
    assert tracker.phase is Phase.SHELL
    tracker.feed(b"\r\n[    0.000000] Linux version 6.1.0 (x)\r\n", 6000)
    assert (tracker.phase, tracker.boots) == (Phase.KERNEL, 1)
