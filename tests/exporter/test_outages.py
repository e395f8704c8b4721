# SPDX-License-Identifier: Apache-2.0
"""The controller goes and comes back; sessions, hooks and power do not notice. What changed meanwhile is caught up."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from pathlib import Path

import pytest
from exporter_harness import (
    Place,
    jmp_run,
    known_as,
    lease,
    leased,
    reached,
    ready,
    released,
    run,
    until,
    wire,
)

from jumpstarter.common.enums import ExporterStatus
from jumpstarter.exporter import uplink
from jumpstarter.exporter.uplink import Superseded

HOOKS = {
    "beforeLease": {"script": "echo before $LEASE_NAME $CLIENT_NAME >> $TRACE", "passEnv": ["TRACE"]},
    "afterLease": {"script": "echo after $LEASE_NAME $CLIENT_NAME >> $TRACE", "passEnv": ["TRACE"]},
}


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the hooks write."""
    path = tmp_path / "trace"
    path.touch()
    monkeypatch.setenv("TRACE", str(path))
    return path


def test_a_controller_killed_and_restarted_under_a_session_changes_nothing_in_it(place: Place, trace: Path) -> None:
    config = place.exporter(hooks=HOOKS)

    async def body() -> None:
        with place.controller() as controller:
            async with place.serving(config) as (exporter, task), place.client() as alice:
                await known_as(alice, ExporterStatus.AVAILABLE)
                name = await leased(alice)
                async with reached(alice, name, place.directory) as session:
                    await ready(session)
                    await session.node("power").call("on")
                    same = session.report.uuid
                for _ in range(2):
                    controller.kill()
                    controller.start()
                    async with reached(alice, name, place.directory) as session:  # the next dial works
                        assert session.report.uuid == same
                        assert await session.node("power").call("status") == "on"
                assert trace.read_text() == f"before {name} alice\n"
                assert await known_as(alice, ExporterStatus.LEASE_READY) == ""
                await released(alice, name)
                await known_as(alice, ExporterStatus.AVAILABLE)
                assert trace.read_text() == f"before {name} alice\nafter {name} alice\n"
            assert task.result() == 0

    run(body)


def test_a_tunnel_that_does_not_go_through_the_controller_lives_on(place: Place) -> None:
    """The network between exporter and controller is cut and mended; the client's open stream stays."""
    config = place.exporter(
        export={
            "power": {"type": "jumpstarter_driver_power.driver.MockPower"},
            "echo": {"type": "jumpstarter_driver_network.driver.EchoNetwork"},
        }
    )

    async def body() -> None:
        with place.controller():
            async with wire(place, config) as relay, place.client() as alice:
                async with place.serving(config):
                    await known_as(alice, ExporterStatus.AVAILABLE)
                    name = await leased(alice)
                    # The built-in router is named by the controller itself, not by the relay.
                    async with reached(alice, name, place.directory) as session:
                        await ready(session)
                        async with session.node("echo").stream() as stream:
                            await stream.send(b"one")
                            assert await stream.receive() == b"one"
                            await relay.cut()
                            await stream.send(b"two")
                            assert await stream.receive() == b"two"
                            await session.node("power").call("on")
                            await relay.mend()
                            async with reached(alice, name, place.directory) as again:
                                assert await again.node("power").call("status") == "on"
                            await stream.send(b"three")
                            assert await stream.receive() == b"three"

    run(body)


def test_a_lease_that_ended_while_the_controller_was_away_is_ended_and_the_next_one_served(
    place: Place, trace: Path
) -> None:
    config = place.exporter(hooks=HOOKS)

    async def body() -> None:
        with place.controller():
            async with wire(place, config) as relay, place.client() as alice, place.client("bob") as bob:
                async with place.serving(config):
                    await known_as(alice, ExporterStatus.AVAILABLE)
                    first = await leased(alice)
                    async with reached(alice, first, place.directory) as session:
                        await ready(session)
                        await session.node("power").call("on")
                    await relay.cut()
                    await released(alice, first)
                    waiting = asyncio.create_task(leased(bob))
                    assert trace.read_text() == f"before {first} alice\n"
                    await relay.mend()
                    second = await waiting
                    async with reached(bob, second, place.directory) as session:
                        await ready(session)
                        assert await session.node("power").call("status") == "off"
                    assert trace.read_text().splitlines() == [
                        f"before {first} alice",
                        f"after {first} alice",
                        f"before {second} bob",
                    ]

    run(body)


def test_hooks_run_through_an_outage(place: Place, trace: Path) -> None:
    gate = place.directory / "gate"
    hooks = {"beforeLease": {"script": f"until [ -e {gate} ]; do sleep 0.05; done; echo done >> {trace}"}}
    config = place.exporter(hooks=hooks)

    async def body() -> None:
        with place.controller() as controller:
            async with place.serving(config), place.client() as alice:
                await known_as(alice, ExporterStatus.AVAILABLE)
                name = await leased(alice)
                await known_as(alice, ExporterStatus.BEFORE_LEASE_HOOK)
                controller.kill()
                gate.touch()
                await until(lambda: trace.read_text() == "done\n")
                controller.start()
                await known_as(alice, ExporterStatus.LEASE_READY)
                async with reached(alice, name, place.directory) as session:
                    await session.node("power").call("on")
                assert trace.read_text() == "done\n"

    run(body)


def test_stopping_while_the_controller_is_away_gives_the_device_back(place: Place, trace: Path) -> None:
    config = place.exporter(hooks=HOOKS)

    async def body() -> None:
        with place.controller() as controller:
            async with place.client() as alice:
                with jmp_run("--exporter-config", config) as exporter:
                    await known_as(alice, ExporterStatus.AVAILABLE)
                    name = await leased(alice)
                    async with reached(alice, name, place.directory) as session:
                        await ready(session)
                        await session.node("power").call("on")
                    controller.kill()
                    exporter.wait_for("is away")
                    assert exporter.end(signal.SIGTERM) == 0
                    assert any('"power" switched off' in line for line in exporter.lines)
                assert trace.read_text().splitlines() == [f"before {name} alice", f"after {name} alice"]

    run(body)


def test_a_revoked_exporter_says_so_and_keeps_trying(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(uplink, "_REFUSED_SECONDS", 0.2)
    config = place.exporter()
    database = place.lab.folder / "lab.db"

    async def body() -> None:
        with place.controller() as controller:
            async with place.serving(config) as (exporter, task), place.client() as alice:
                await known_as(alice, ExporterStatus.AVAILABLE)
                controller.kill()
                for file in database.parent.glob("lab.db*"):  # another controller, which does not know anybody
                    file.rename(file.with_name(f"kept-{file.name}"))
                controller.start()
                with caplog.at_level(logging.ERROR):
                    await until(lambda: "refuses this exporter" in caplog.text)
                assert not task.done()
                controller.kill()
                for file in database.parent.glob("kept-*"):
                    file.rename(file.with_name(file.name.removeprefix("kept-")))
                controller.start()
                await known_as(alice, ExporterStatus.AVAILABLE)
                await leased(alice)
                await known_as(alice, ExporterStatus.LEASE_READY)
                assert caplog.text.count("refuses this exporter") == 1

    run(body)


def test_of_two_processes_with_one_name_the_newer_one_serves_and_the_older_one_says_so(
    place: Place, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = place.exporter(hooks=HOOKS)

    async def body() -> None:
        with place.controller():
            async with place.client() as alice:
                async with place.serving(config) as (_, old):
                    await known_as(alice, ExporterStatus.AVAILABLE)
                    monkeypatch.setenv("XDG_STATE_HOME", str(place.directory / "another-host"))
                    async with place.serving(config) as (_, new):
                        await asyncio.wait([old])
                        with pytest.raises(Superseded, match="another process has registered as exporter board"):
                            old.result()
                        name = await leased(alice)
                        async with reached(alice, name, place.directory) as session:
                            await ready(session)
                        assert trace.read_text() == f"before {name} alice\n"
                        assert not new.done()

    run(body)


@pytest.mark.parametrize("skew", [-300, 300])
def test_a_controller_whose_clock_is_five_minutes_off_from_ours(place: Place, skew: int) -> None:
    # The controller's, not the exporter's: gRPC for Python makes its deadlines from the same clock.
    (place.directory / "sitecustomize.py").write_text(
        f"import time\nreal = time.time\ntime.time = lambda: real() + {skew}\n"
    )
    config = place.exporter()

    async def body() -> None:
        with place.controller(PYTHONPATH=str(place.directory)) as controller:
            async with place.serving(config), place.client() as alice:
                await known_as(alice, ExporterStatus.AVAILABLE)
                name = await leased(alice, seconds=600)
                began = (await lease(alice, name)).effective_begin_time.seconds
                assert skew - 60 < began - time.time() < skew + 60
                for _ in range(2):
                    async with reached(alice, name, place.directory) as session:
                        await ready(session)
                        await session.node("power").call("on")
                    controller.kill()
                    controller.start()
                assert not (await lease(alice, name)).HasField("effective_end_time")
                await released(alice, name)
                await known_as(alice, ExporterStatus.AVAILABLE)

    run(body)
