# SPDX-License-Identifier: Apache-2.0
"""Power, console and life of a virtual board, with a real QEMU and U-Boot."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest_qemu import UBOOT, board, served, wait_console, wait_gone, wait_until

from jumpstarter.common.exceptions import DriverError, DriverMethodNotImplemented

Serving = Callable[[Any], Any]


@pytest.fixture(scope="module")
def shared() -> Iterator[Any]:
    """One board for the tests that leave it as they found it: off or on, it does not matter."""
    with served(
        board(vnc=True, hostfwd={"web": {"guestport": 80}, "dns": {"guestport": 53, "protocol": "udp"}})
    ) as client:
        yield client


def machine_pid(client: Any) -> int:
    return int(client.info()["pid"])


def test_first_byte_of_output_is_in_the_log_with_no_client_attached(serving: Serving) -> None:
    client = serving(board())
    client.power.on()
    found, _ = wait_console(client, rb"U-Boot \d{4}\.\d+[^\n]*\n")
    log = client.console.log(0, 4096)
    assert log["seq"] == 0 and log["dropped"] == 0
    assert log["data"][: found.end()].split() and log["data"].lstrip(b"\r\n").startswith(b"U-Boot 20"), log["data"][:80]


def test_status_is_the_state_of_the_process_and_switching_twice_changes_nothing(shared: Any) -> None:
    shared.power.off()
    assert shared.power.status() == "off"
    shared.power.off()
    shared.power.on()
    assert shared.power.status() == "on"
    pid = machine_pid(shared)
    assert Path(f"/proc/{pid}/comm").read_text().startswith("qemu-system-aar")
    shared.power.on()
    assert machine_pid(shared) == pid
    shared.power.off()
    assert not Path(f"/proc/{pid}").exists(), "off returns when the process is reaped"
    assert shared.power.status() == "off" and shared.info()["why_off"] == "switched off"


def test_cycle_starts_a_new_machine(shared: Any) -> None:
    shared.power.on()
    before = machine_pid(shared)
    shared.power.call("cycle", 0)
    assert shared.power.status() == "on" and machine_pid(shared) != before


def test_crash_is_noticed_and_named_and_power_on_starts_afresh(shared: Any) -> None:
    shared.power.on()
    os.kill(machine_pid(shared), signal.SIGSEGV)
    wait_until(lambda: shared.power.status() == "off", "status off after a crash")
    wait_until(lambda: "SIGSEGV" in shared.info()["why_off"], "reason of the crash")
    with pytest.raises(DriverError, match=r"virtual machine is off: .*killed by SIGSEGV\); power it on first"):
        shared.ssh.address()
    at = shared.console.call("position")["seq"]
    shared.power.on()
    assert shared.power.status() == "on"
    wait_console(shared, rb"U-Boot 20", since=at)


def test_guest_that_resets_keeps_running_and_its_console_stays_attached(shared: Any) -> None:
    shared.power.off()
    at = shared.console.call("position")["seq"]
    shared.power.on()
    pid = machine_pid(shared)
    with shared.console.pexpect() as console:
        _stop_at_prompt(shared, console, at)
        console.send("reset\r")
        console.expect(rb"resetting \.\.\.", timeout=60)
        console.expect(rb"U-Boot 20", timeout=60)
    assert shared.power.status() == "on" and machine_pid(shared) == pid


def test_guest_that_powers_itself_off_is_off_and_no_crash(shared: Any) -> None:
    shared.power.off()
    at = shared.console.call("position")["seq"]
    shared.power.on()
    with shared.console.pexpect() as console:
        _stop_at_prompt(shared, console, at)
        console.send("poweroff\r")
        wait_until(lambda: shared.power.status() == "off", "off after poweroff", 60)
    wait_until(lambda: shared.info()["why_off"] == "the guest powered itself off", "reason")


def _stop_at_prompt(client: Any, console: Any, since: int) -> None:
    wait_console(client, rb"Hit any key", since=since)
    console.send("\x03\x03")
    console.expect(rb"=> $", timeout=60)


def test_meter_that_does_not_exist_is_said_so(shared: Any) -> None:
    with pytest.raises(DriverMethodNotImplemented, match="no power meter"):
        list(shared.power.read())


def test_forwarded_ports_are_chosen_free_and_reported(shared: Any) -> None:
    shared.power.off()
    with pytest.raises(DriverError, match="virtual machine is off"):
        shared.web.address()
    shared.power.on()
    ports = shared.info()["ports"]
    assert sorted(ports) == ["dns", "ssh", "web"] and all(ports.values()) and len(set(ports.values())) == 3
    assert shared.ssh.address() == f"tcp://127.0.0.1:{ports['ssh']}"
    assert shared.dns.address() == f"udp://127.0.0.1:{ports['dns']}"
    with socket.create_connection(("127.0.0.1", ports["ssh"]), timeout=5) as sock:
        assert sock.getpeername()[1] == ports["ssh"]


def test_screen_speaks_vnc_over_the_stream(shared: Any) -> None:
    shared.power.on()
    with shared.vnc.stream() as stream:
        assert stream.receive().startswith(b"RFB 003.")
    shared.power.off()
    with pytest.raises(DriverError, match="virtual machine is off"), shared.vnc.stream() as stream:
        stream.receive()


def test_ten_power_cycles_leave_no_descriptor_thread_or_process(serving: Serving) -> None:
    driver = board()
    client = serving(driver)
    runtime = driver._disks.runtime_path
    client.power.on()
    client.power.off()
    wait_until(lambda: not _resources(runtime)[1], "end of the threads, which outlive the machine a little")
    settled = _resources(runtime)
    pids = []
    for _ in range(10):
        client.power.on()
        pids.append(machine_pid(client))
        client.power.off()
    assert len(set(pids)) == 10 and not [pid for pid in pids if Path(f"/proc/{pid}").exists()]

    def as_before() -> bool:
        # What is left at each cycle is left ten times; other tests' connections may come and go meanwhile.
        now = _resources(runtime)
        return now[0] < settled[0] + 10 and now[1:] == settled[1:]

    wait_until(as_before, f"as before: {settled}")


def _resources(runtime: Path) -> tuple[int, list[str], list[str]]:
    threads = [t.name for t in threading.enumerate() if t.name.startswith(("qmp", "watch"))]
    return len(os.listdir("/proc/self/fd")), sorted(threads), sorted(p.name for p in runtime.iterdir())


def test_end_of_session_leaves_no_process_socket_or_directory() -> None:
    driver = board(vnc=True, cloud_init=True)
    runtime = driver._disks.runtime_path
    assert not runtime.exists(), "constructing a driver touches nothing"
    with served(driver) as client:
        client.power.on()
        pid = machine_pid(client)
        assert runtime.stat().st_mode & 0o777 == 0o700
        assert {"vnc", "console", "cidata"} <= {p.name for p in runtime.iterdir()}
        assert all(p.stat().st_mode & 0o077 == 0 for p in (runtime / "cidata").iterdir())
    wait_gone(pid)
    assert not runtime.exists()


def test_close_does_not_wait_for_a_guest_that_ignores_its_power_button() -> None:
    driver = board(powerdown_timeout=60)
    with served(driver) as client:
        client.power.on()
        pid = machine_pid(client)
        offs = threading.Thread(target=lambda: _quietly(client.power.off))
        offs.start()
        wait_until(lambda: driver._machine._stopping, "power off in progress")
        began = time.monotonic()
        driver.close()
        wait_gone(pid, 40)
        assert time.monotonic() - began < 50, "it does not wait for the guest's 60 s"
        offs.join(60)


def _quietly(function: Callable[[], None]) -> None:
    try:
        function()
    except DriverError as error:
        logging.getLogger(__name__).info("ended by the end of the session: %s", error)


def test_power_off_presses_the_button_before_it_pulls_the_plug(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    client = serving(board(powerdown_timeout=0.5, log_level="DEBUG"))
    client.power.on()
    with caplog.at_level(logging.DEBUG, logger="driver.Qemu"):
        began = time.monotonic()
        client.power.off()
        elapsed = time.monotonic() - began
    assert elapsed >= 0.5
    assert any("POWERDOWN" in record.getMessage() for record in caplog.records)


def test_power_off_returns_as_soon_as_the_guest_has_shut_down(serving: Serving) -> None:
    client = serving(board(powerdown_timeout=60))
    client.power.on()
    with client.console.pexpect() as console:
        _stop_at_prompt(client, console, 0)
        console.send("sleep 1; poweroff\r")  # stands for a guest that listens to its button
        console.expect("sleep 1; poweroff", timeout=60)
        began = time.monotonic()
        client.power.off()
    assert time.monotonic() - began < 60 and client.power.status() == "off"


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"cpu": "nonsense"}, r"unable to find CPU model 'nonsense' \(machine virt, accel tcg, cpu nonsense\)$"),
        ({"accel": "kvm"}, r"invalid accelerator kvm \(machine virt, accel kvm, cpu host\)$"),
        ({"machine": "toaster"}, r"unsupported machine type \(machine toaster,"),
        ({"extra_args": ["-device", "flux-capacitor"]}, "'flux-capacitor' is not a valid device model name"),
        ({"arch": "cris"}, "program 'qemu-system-cris' is not installed on the exporter host"),
        (
            {"default_partitions": {"root": "/nowhere/disk.img"}},
            "default_partitions.root: /nowhere/disk.img does not",
        ),
    ],
)
def test_qemu_that_does_not_start_is_one_clear_line(serving: Serving, config: dict[str, Any], line: str) -> None:
    client = serving(board(**config))
    began = time.monotonic()
    with pytest.raises(DriverError, match=line) as error:
        client.power.on()
    assert "\n" not in str(error.value) and "qemu.power.on" not in str(error.value).replace("power.on: ", "", 1)
    assert time.monotonic() - began < 25, "the end of QEMU is noticed, not waited for"
    assert client.power.status() == "off"


def test_port_in_use_is_one_clear_line(serving: Serving) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        client = serving(board(hostfwd={"ssh": {"guestport": 22, "hostport": port}}))
        with pytest.raises(DriverError, match=rf"Could not set up host forwarding rule .*{port}"):
            client.power.on()


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"accel": "auto"}, "accel: 'auto' is none of tcg, kvm"),
        ({"arch": "vax"}, 'arch: "vax" is no architecture of QEMU; the common ones are aarch64'),
        ({"arch": "arm64"}, 'arch: "arm64" is no architecture of QEMU; did you mean "aarch64"'),
        ({"default_partitions": {"bios": "/nowhere/u.bin"}}, "default_partitions.bios: /nowhere/u.bin does not exist"),
        ({"mem": "lots"}, "mem: "),
        ({"mem": "512K"}, "less than 1 MiB"),
        ({"smp": 0}, "smp: 0"),
        ({"powerdown_timeout": -1}, "powerdown_timeout: -1 is negative"),
        ({"hostfwd": {"console": {"guestport": 1}}}, "hostfwd.console: the name belongs to a child"),
        ({"hostfwd": {"x": {"guestport": 0}}}, "hostfwd.x.guestport: 0 is no port"),
        ({"hostfwd": {"x": {"guestport": 1, "protocol": "sctp"}}}, "hostfwd.x.protocol: 'sctp'"),
        ({"hostfwd": {"x": {"guest": 1}}}, "hostfwd.x.guest: no such field"),
        ({"default_partitions": {"boot": "/x"}}, r"default_partitions.boot: no such partition; there is root, bios"),
        ({"disk": {"size": "-1"}}, "disk.size"),
        ({"disk": {"siez": "1G"}}, "disk.siez: no such field; there is size, path"),
    ],
)
def test_configuration_mistake_names_the_field(config: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        board(**config)


EXPORTER = """
import sys
from conftest_qemu import board, served
with served(board()) as client:
    client.power.on()
    print(client.info()["pid"], client.flasher.targets()[0].path, flush=True)
    sys.stdin.read()
"""


def test_sigkill_of_the_exporter_leaves_no_qemu_and_its_files_go_with_the_next_one(serving: Serving) -> None:
    exporter = subprocess.Popen(
        [sys.executable, "-c", EXPORTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), *filter(None, sys.path)))},
        start_new_session=True,
    )
    try:
        assert exporter.stdout is not None
        found = re.fullmatch(r"(\d+) (/.+)\n", exporter.stdout.readline())
        assert found
        runtime = Path(found.group(2)).parent
        serving(board())
        assert runtime.exists(), "another exporter leaves the files of a living one alone"
        exporter.kill()
        wait_gone(int(found.group(1)))
    finally:
        exporter.kill()
        exporter.communicate()
    serving(board())
    assert not runtime.exists()


def exporter_process(tmp_path: Path) -> tuple[subprocess.Popen[str], str]:
    """The exporter program with a board, as a play starts it; returns it when it serves."""
    config = tmp_path / "exporter.yaml"
    settings = {"arch": "aarch64", "mem": "128M", "powerdown_timeout": 0, "default_partitions": {"bios": str(UBOOT)}}
    config.write_text(
        json.dumps(
            {
                "apiVersion": "jumpstarter.dev/v1alpha1",
                "kind": "ExporterConfig",
                "metadata": {"namespace": "default", "name": "bench"},
                "export": {"qemu": {"type": "jumpstarter_driver_qemu.driver.Qemu", "config": settings}},
            }
        )
    )
    path = str(tmp_path / "s")
    process = subprocess.Popen(
        [sys.executable, "-m", "jumpstarter.exporter", "--config", str(config), "--listen", f"unix:{path}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline().startswith("READY")
    return process, path


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "lifeline", "SIGKILL"])
def test_exporter_program_that_ends_takes_its_machine_with_it(tmp_path: Path, how: str) -> None:
    from jumpstarter.client.aio import connect

    process, path = exporter_process(tmp_path)

    async def switch_on() -> tuple[int, Path]:
        async with connect(path) as session:
            await session.node("qemu.power").call("on")
            info = await session.node("qemu").call("info")
            targets = await session.node("qemu.flasher").call("targets")
            return int(info["pid"]), Path(targets[0]["path"]).parent

    try:
        pid, runtime = asyncio.run(switch_on())
        assert Path(f"/proc/{pid}").exists()
        if how == "lifeline":
            assert process.stdin is not None
            process.stdin.close()
        else:
            process.send_signal(getattr(signal, how))
        wait_gone(pid)
        process.wait(60)
        assert how == "SIGKILL" or (process.returncode == 0 and not runtime.exists())
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_memory_size_changes_at_the_next_power_on(serving: Serving) -> None:
    client = serving(board())
    with pytest.raises(ValueError, match="mem: "):
        client.set_memory_size("much")
    client.set_memory_size("256M")
    client.power.on()
    found, _ = wait_console(client, rb"DRAM:\s+(\d+) MiB")
    assert found.group(1) == b"256" and client.info()["memory"] == 256 << 20


def test_firmware_file_is_only_read() -> None:
    before = (hashlib.sha256(UBOOT.read_bytes()).digest(), UBOOT.stat().st_mtime_ns)
    with served(board()) as client:
        client.power.on()
        wait_console(client, rb"U-Boot 20")
    assert (hashlib.sha256(UBOOT.read_bytes()).digest(), UBOOT.stat().st_mtime_ns) == before


def test_resize_command_reaches_the_driver(shared: Any) -> None:
    from click.testing import CliRunner

    result = CliRunner().invoke(shared.cli(), ["resize", "memory", "192M"])
    assert result.exit_code == 0, result.output
    assert shared.info()["memory"] == 192 << 20
    refused = CliRunner().invoke(shared.cli(), ["resize", "memory", "none"])
    assert refused.exit_code != 0 and "mem:" in f"{refused.output}{refused.exception}"


def test_a_console_without_machine_says_that_the_machine_is_off() -> None:
    from jumpstarter.common.exceptions import DriverError
    from jumpstarter.common.utils import serve
    from jumpstarter_driver_qemu.driver import Qemu

    with serve(Qemu(arch="aarch64", machine="virt", cpu="cortex-a57")) as client:
        with pytest.raises(DriverError, match="the virtual machine is off: it was not switched on in this session"):
            client.children["console"].call("write", b"x")
