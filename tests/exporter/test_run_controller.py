# SPDX-License-Identifier: Apache-2.0
"""`jmp run` for a controller: a service with true exit codes, that comes back from a crash and leaves nothing on."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
import yaml
from exporter_harness import POWER, Place, jmp_run, known_as, leased, reached, ready, released, run

from jumpstarter.common.enums import ExporterStatus

HELD = r"lease \S+: ready"


def test_signals_stop_it_with_afterlease_hook_and_unregister(place: Place) -> None:
    config = place.exporter(hooks={"afterLease": {"script": f"echo over >> {place.directory}/after"}})

    async def body() -> None:
        with place.controller():
            async with place.client() as alice:
                for number, seen in ((signal.SIGTERM, 1), (signal.SIGINT, 2)):
                    with jmp_run("--exporter-config", config) as exporter:
                        await known_as(alice, ExporterStatus.AVAILABLE)
                        name = await leased(alice)
                        async with reached(alice, name, place.directory) as session:
                            await ready(session)
                            await session.node("power").call("on")
                        assert exporter.end(number) == 0
                        assert any('"power" switched off' in line for line in exporter.lines)
                    assert await known_as(alice, ExporterStatus.OFFLINE) == "Exporter stopped"
                    assert (place.directory / "after").read_text() == "over\n" * seen
                    with pytest.raises(Exception, match="already been released|has ended"):
                        await released(alice, name)  # the exporter gave it back
            assert os.listdir(place.directory / "run") == []
            assert os.listdir(place.directory / "state" / "jumpstarter") == []

    run(body)


def test_sighup_waits_for_the_end_of_the_lease(place: Place) -> None:
    config = place.exporter()

    async def body() -> None:
        with place.controller():
            async with place.client() as alice:
                with jmp_run("--exporter-config", config) as exporter:
                    await known_as(alice, ExporterStatus.AVAILABLE)
                    name = await leased(alice)
                    async with reached(alice, name, place.directory) as session:
                        await ready(session)
                        exporter.process.send_signal(signal.SIGHUP)
                        exporter.wait_for("stopping after the lease")
                        await session.node("power").call("on")
                    await released(alice, name)
                    assert exporter.wait() == 0
                    assert any('"power" switched off' in line for line in exporter.lines)
                await known_as(alice, ExporterStatus.OFFLINE)

    run(body)


def test_a_second_signal_does_not_wait_for_hooks(place: Place) -> None:
    config = place.exporter(hooks={"beforeLease": {"script": "echo begun; exec sleep 600", "timeout": 600}})

    async def body() -> None:
        with place.controller():
            async with place.client() as alice:
                with jmp_run("--exporter-config", config) as exporter:
                    await known_as(alice, ExporterStatus.AVAILABLE)
                    await leased(alice)
                    exporter.wait_for("begun")
                    exporter.process.send_signal(signal.SIGTERM)
                    exporter.wait_for("SIGTERM: stopping")
                    assert exporter.end() == 130
                await known_as(alice, ExporterStatus.OFFLINE)

    run(body)


def test_it_can_be_told_to_stop_after_one_lease(place: Place) -> None:
    config = place.exporter(exitOnLeaseEnd=True)

    async def body() -> None:
        with place.controller():
            async with place.client() as alice:
                with jmp_run("--exporter-config", config) as exporter:
                    await known_as(alice, ExporterStatus.AVAILABLE)
                    name = await leased(alice)
                    exporter.wait_for(HELD)
                    await released(alice, name)
                    assert exporter.wait() == 0

    run(body)


@pytest.mark.parametrize("moment", ["beforeLease", "afterLease"])
def test_a_hook_with_onfailure_exit_is_exit_code_1(place: Place, moment: str) -> None:
    config = place.exporter(hooks={moment: {"script": "echo broken; exit 3", "onFailure": "exit"}})

    async def body() -> None:
        with place.controller():
            async with place.client() as alice:
                with jmp_run("--exporter-config", config) as exporter:
                    await known_as(alice, ExporterStatus.AVAILABLE)
                    name = await leased(alice)
                    if moment == "afterLease":
                        exporter.wait_for(HELD)
                        await released(alice, name)
                    assert exporter.wait() == 1
                    assert any(f"{moment} hook failed (exit code 3)" in line for line in exporter.lines)
                await known_as(alice, ExporterStatus.OFFLINE)

    run(body)


def test_a_killed_exporter_process_comes_back_with_the_power_off_and_the_lease_goes_on(place: Place) -> None:
    """kill -9 in the middle of a lease: started again, what was on is switched off, the hook runs again."""
    (place.directory / "switching.py").write_text(
        "import os\n"
        "from jumpstarter_driver_power.driver import MockPower\n"
        "from jumpstarter.driver import export\n"
        "class Recording(MockPower):\n"
        "    @export\n"
        "    def on(self): self._say('on')\n"
        "    @export\n"
        "    def off(self): self._say('off')\n"
        "    def _say(self, what): open(os.environ['SWITCHED'], 'a').write(what + '\\n')\n"
    )
    switched = place.directory / "switched"
    config = place.exporter(
        export={"power": {"type": "switching.Recording"}}, hooks={"beforeLease": {"script": "echo prepared"}}
    )
    env = {"PYTHONPATH": str(place.directory), "SWITCHED": str(switched)}

    async def body() -> None:
        with place.controller():
            async with place.client() as alice:
                with jmp_run("--exporter-config", config, **env) as exporter:
                    await known_as(alice, ExporterStatus.AVAILABLE)
                    name = await leased(alice)
                    async with reached(alice, name, place.directory) as session:
                        await ready(session)
                        ids = {node.path: node.uuid for node in session.nodes.values()}
                        await session.node("power").call("on")
                        assert switched.read_text() == "on\n"
                        lost = session.report.uuid
                        os.kill(exporter.worker(), signal.SIGKILL)
                    exporter.wait_for("ended by SIGKILL: starting it again")
                    exporter.wait_for("with power on: switching off")
                    exporter.wait_for(HELD, times=2)
                    assert switched.read_text() == "on\noff\n"
                    assert sum("prepared" in line for line in exporter.lines) == 2
                    async with reached(alice, name, place.directory) as session:  # the same lease
                        assert session.report.uuid != lost
                        assert {node.path: node.uuid for node in session.nodes.values()} == ids
                        await session.node("power").call("on")
                    await released(alice, name)
                    await known_as(alice, ExporterStatus.AVAILABLE)
                    assert switched.read_text() == "on\noff\non\noff\n"
                    assert exporter.end() == 0

    run(body)


def test_the_exporter_ends_by_itself_when_its_supervisor_is_killed(place: Place) -> None:
    config = place.exporter(hooks={"afterLease": {"script": f"echo over > {place.directory}/after"}})

    async def body() -> None:
        with place.controller():
            async with place.client() as alice:
                with jmp_run("--exporter-config", config) as exporter:
                    await known_as(alice, ExporterStatus.AVAILABLE)
                    await leased(alice)
                    exporter.wait_for(HELD)
                    exporter.process.kill()
                    await known_as(alice, ExporterStatus.OFFLINE)
                    assert (place.directory / "after").read_text() == "over\n"

    run(body)


def test_it_gives_up_when_it_crashes_too_often(place: Place) -> None:
    (place.directory / "crashing.py").write_text(
        "import os\n"
        "from jumpstarter_driver_power.driver import MockPower\n"
        "class Crashing(MockPower):\n"
        "    def __post_init__(self): os.abort()\n"
    )
    config = place.exporter(
        export={"power": {"type": "crashing.Crashing"}},
        failureDetection={"maxRapidFailures": 2, "rapidFailureWindow": 60},
    )
    with jmp_run("--exporter-config", config, PYTHONPATH=str(place.directory)) as exporter:
        assert exporter.wait() == 1
        assert sum("ended by SIGABRT" in line for line in exporter.lines) == 2
        assert any("2 times within 60 s (failureDetection): giving up" in line for line in exporter.lines)


def _error(exporter: object) -> str:
    lines = [line for line in getattr(exporter, "lines") if line.startswith("Error: ")]  # noqa: B009
    assert len(lines) == 1, getattr(exporter, "lines")  # noqa: B009
    return lines[0]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"token": "nonsense"}, ["refuses this exporter", "token"]),
        ({"metadata": {"namespace": "default", "name": "nobody"}}, ["refuses this exporter"]),
        ({"tls": {}}, ["refuses this exporter", "CERTIFICATE_VERIFY_FAILED", "tls"]),
        ({"endpoint": None}, ["endpoint is not set"]),
        ({"token": None}, ["token is not set"]),
        ({"export": {"power": {"type": "no.such.Driver"}}}, ["power", "no.such.Driver"]),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_1(
    place: Place, change: dict[str, object], parts: list[str]
) -> None:
    config = place.exporter()
    data = {**yaml.safe_load(config.read_text()), **change}
    config.write_text(yaml.safe_dump(data))
    with place.controller(), jmp_run("--exporter-config", config) as exporter:
        assert exporter.wait() == 1
        line = _error(exporter)
        assert all(part in line for part in [*parts, str(config) if "tls" not in change else ""]), line
        assert str(data["token"]) not in "\n".join(exporter.lines) or data["token"] in (None, "nonsense")


def test_it_waits_for_a_controller_that_is_not_there_yet_and_can_be_stopped_meanwhile(place: Place) -> None:
    config = place.exporter()
    with jmp_run("--exporter-config", config) as exporter:
        exporter.wait_for("is away .*waiting for it")
        assert exporter.end() == 0

    async def body() -> None:
        with jmp_run("--exporter-config", config) as late:
            late.wait_for("is away")
            with place.controller():
                async with place.client() as alice:
                    await known_as(alice, ExporterStatus.AVAILABLE)
                assert late.end() == 0

    run(body)


def test_systemd_is_told(place: Place, tmp_path: Path) -> None:
    config = place.exporter(export={"power": {"type": POWER}})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"}
        with place.controller(), jmp_run("--exporter-config", config, **env) as exporter:
            told: list[str] = []
            while not {"READY=1", "STATUS=available", "WATCHDOG=1"} <= set(told):
                told.append(systemd.recv(4096).decode())
            assert exporter.end() == 0
            while "STOPPING=1" not in told:
                told.append(systemd.recv(4096).decode())
