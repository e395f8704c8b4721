# SPDX-License-Identifier: Apache-2.0
"""The harness of the test guest: commands and their ends, ports, exporters, and that nothing of it is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from guest_exporter import guest_exporter
from guest_machine import HOST, Guest, GuestError, running_keeper


def test_commands_have_input_output_and_exit_codes(guest: Guest) -> None:
    done = guest.run(["sh", "-c", "cat; echo fault >&2; exit 3"], input=b"\x00\xff data", check=False)
    assert (done.rc, done.stdout_bytes, done.stderr) == (3, b"\x00\xff data", "fault\n")
    with pytest.raises(GuestError, match="fault"):
        guest.run(["sh", "-c", "echo fault >&2; exit 3"])
    with pytest.raises(GuestError, match="no-such-program"):
        guest.run(["no-such-program"])
    assert guest.shell("uname -s") == "Linux\n"


def test_a_command_dies_with_all_it_started_when_the_test_lets_it_go(guest: Guest) -> None:
    mark = guest.name("orphan")
    with guest.start(["sh", "-c", f"sh -c 'while :; do sleep 1; done' {mark} & echo started; wait"]) as process:
        process.wait_for("started")
        assert guest.run(["pgrep", "-f", mark]).stdout
    assert guest.run(["pgrep", "-f", f"do sleep 1; done {mark}"], check=False).rc == 1


def test_a_timeout_says_what_was_seen_and_ends_the_command(guest: Guest) -> None:
    mark = guest.name("slow")
    with pytest.raises(TimeoutError, match="half the answer"):
        guest.run(["sh", "-c", f"echo half the answer; exec sleep 5000 # {mark}"], timeout=1)
    assert guest.run(["pgrep", "-f", mark], check=False).rc == 1


def test_the_guest_has_this_machines_files_udev_and_kernel_modules(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("made after boot")
    assert guest.shell(f"cat {Guest.live(tmp_path / 'new')}") == "made after boot"
    vcan = guest.name("vc")
    guest.modprobe("vcan")
    guest.shell(f"ip link add {vcan} type vcan && udevadm settle && udevadm info -q property /sys/class/net/{vcan}")
    guest.shell(f"ip link delete {vcan}")
    assert guest.run([sys.executable, "-c", "import grpc; print('yes')"]).stdout == "yes\n"
    assert guest.run(["touch", "/etc/written-in-the-guest"]).rc == 0
    assert not Path("/etc/written-in-the-guest").exists()


def test_ports_lead_both_ways(guest: Guest) -> None:
    serve = (
        "import socket; s = socket.create_server(('', 0)); print(s.getsockname()[1], flush=True); p = s.accept()[0]; "
    )
    with guest.start([sys.executable, "-c", serve + "p.sendall(b'from the guest')"]) as server:
        with guest.forward(int(server.wait_for(r"^\d+").group())) as port:
            import socket

            with socket.create_connection(("127.0.0.1", port), timeout=20) as peer:
                assert peer.recv(100) == b"from the guest"
    with subprocess.Popen(
        [sys.executable, "-c", serve + "p.sendall(b'from the host')"], stdout=subprocess.PIPE, text=True
    ) as server_here:
        try:
            assert server_here.stdout is not None
            port = int(server_here.stdout.readline())
            ask = f"import socket; print(socket.create_connection(({HOST!r}, {port}), timeout=20).recv(100).decode())"
            assert guest.run([sys.executable, "-c", ask]).stdout == "from the host\n"
        finally:
            server_here.kill()


def test_an_exporter_in_the_guest_serves_clients_here(guest: Guest) -> None:
    with guest_exporter(guest, {"power": {"type": "jumpstarter_driver_power.driver.MockPower"}}) as exporter:
        with exporter.client() as client:
            client.power.on()
        j = Path(sys.executable).with_name("j")
        told = subprocess.run(
            [j, "power", "status"],
            env={**os.environ, **exporter.environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (told.returncode, told.stdout) == (0, "on\n"), told


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("who", ["pytest", "keeper"])
def test_the_machine_goes_when_pytest_or_its_keeper_is_killed(
    tmp_path_factory: pytest.TempPathFactory, who: str
) -> None:
    folder = tmp_path_factory.mktemp("k")
    with subprocess.Popen(["sleep", "600"]) as stand_in:  # for pytest
        try:
            with running_keeper(folder / "g", stand_in.pid) as keeper:
                deadline = time.monotonic() + 120
                while not (folder / "g" / "qmp").exists():
                    assert keeper.poll() is None and time.monotonic() < deadline, (folder / "g/keeper.log").read_text()
                    time.sleep(0.05)
                (qemu,) = children(keeper.pid)
                watched = os.pidfd_open(qemu)
                (stand_in if who == "pytest" else keeper).kill()
                keeper.wait(20)
                import select

                assert select.select([watched], [], [], 20)[0], "QEMU is still there"
                os.close(watched)
        finally:
            stand_in.kill()
