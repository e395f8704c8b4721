# SPDX-License-Identifier: Apache-2.0
"""From registration to the next lease: hooks, live output, driver calls, power, audit."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from exporter_harness import POWER, Place, known_as, lease, leased, reached, ready, released, run, until, wire

from jumpstarter.common.enums import ExporterStatus, LogSource
from jumpstarter.common.exceptions import JumpstarterException
from jumpstarter_driver_power.driver import MockPower
from jumpstarter_protocol.jumpstarter.client.v1 import client_pb2
from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2


def hook(script: str, **more: object) -> dict[str, object]:
    return {"script": script, **more}


def test_a_lease_from_hook_to_hook_with_live_output(place: Place) -> None:
    gate = place.directory / "gate"
    hooks = {
        "beforeLease": hook(
            f"echo preparing for $CLIENT_NAME; j power on; until [ -e {gate} ]; do sleep 0.05; done; echo prepared"
        ),
        "afterLease": hook(f"echo tidying $LEASE_NAME $(j power status) >> {place.directory}/after; j power off"),
    }
    config = place.exporter(hooks=hooks)

    async def body() -> None:
        with place.controller():
            async with place.serving(config) as (exporter, task), place.client() as alice:
                await known_as(alice, ExporterStatus.AVAILABLE)
                name = await leased(alice)
                async with reached(alice, name, place.directory) as session:
                    # The hook runs, and the client sees it work.
                    lines: list[str] = []

                    async def follow() -> None:
                        async for entry in session.logs():
                            lines.append(entry.message)

                    following = asyncio.create_task(follow())
                    await until(lambda: "preparing for alice" in lines, "the hook's output")
                    assert (await session.status())[0] is ExporterStatus.BEFORE_LEASE_HOOK
                    call = asyncio.create_task(session.node("power").call("status"))
                    await asyncio.wait([call], timeout=0.3)
                    assert not call.done()  # it waits for the hook
                    gate.touch()
                    assert await call == "on"
                    await until(lambda: "prepared" in lines)
                    await ready(session)
                    await known_as(alice, ExporterStatus.LEASE_READY)
                    following.cancel()
                await released(alice, name)
                await known_as(alice, ExporterStatus.AVAILABLE)
                assert (place.directory / "after").read_text() == f"tidying {name} on\n"
                assert not task.done()
            assert task.result() == 0

    run(body)


def test_the_lease_ends_by_its_time_and_the_next_client_finds_a_device_at_rest(place: Place) -> None:
    config = place.exporter(hooks={"afterLease": hook(f"echo $CLIENT_NAME >> {place.directory}/after")})

    async def body() -> None:
        with place.controller():
            async with place.serving(config), place.client() as alice, place.client("bob") as bob:
                await known_as(alice, ExporterStatus.AVAILABLE)
                first = await leased(alice, seconds=2)
                second = asyncio.create_task(leased(bob))
                async with reached(alice, first, place.directory) as session:
                    await ready(session)
                    await session.node("power").call("on")
                    alices = session.report.uuid
                    logging.getLogger("driver.test").warning("for alice only")
                    await asyncio.shield(second)  # alice does nothing: her time is over
                    with pytest.raises(JumpstarterException):
                        await session.node("power").call("status")
                async with reached(bob, await second, place.directory) as session:
                    await ready(session)
                    assert session.report.uuid != alices
                    assert await session.node("power").call("status") == "off"
                    logging.getLogger("driver.test").warning("for bob")
                    seen: list[str] = []
                    async for entry in session.logs():
                        seen.append(entry.message)
                        if entry.message == "for bob":
                            break
                    assert "for alice only" not in seen
                assert (place.directory / "after").read_text() == "alice\n"

    run(body)


@pytest.mark.parametrize("moment", ["beforeLease", "afterLease"])
def test_a_failed_hook_that_only_warns(place: Place, moment: str) -> None:
    config = place.exporter(hooks={moment: hook("exit 7", onFailure="warn")})

    async def body() -> None:
        with place.controller():
            async with place.serving(config), place.client() as alice:
                await known_as(alice, ExporterStatus.AVAILABLE)
                name = await leased(alice)
                message = await known_as(alice, ExporterStatus.LEASE_READY)
                if moment == "beforeLease":
                    assert message == "[HOOK_WARNING] beforeLease hook failed (exit code 7)"
                async with reached(alice, name, place.directory) as session:
                    await session.node("power").call("on")
                await released(alice, name)
                message = await known_as(alice, ExporterStatus.AVAILABLE)
                if moment == "afterLease":
                    assert message == "[HOOK_WARNING] afterLease hook failed (exit code 7)"

    run(body)


def test_a_failed_beforelease_hook_with_endlease_gives_the_lease_back_and_says_why(place: Place) -> None:
    hooks = {
        "beforeLease": hook("[ $CLIENT_NAME = bob ] || exit 7", onFailure="endLease"),
        "afterLease": hook(f"echo $CLIENT_NAME >> {place.directory}/after"),
    }
    config = place.exporter(hooks=hooks)

    async def body() -> None:
        with place.controller():
            async with place.serving(config), place.client() as alice, place.client("bob") as bob:
                await known_as(alice, ExporterStatus.AVAILABLE)
                name = await leased(alice)
                message = await known_as(alice, ExporterStatus.BEFORE_LEASE_HOOK_FAILED)
                assert message == "beforeLease hook failed (exit code 7)"
                await known_as(alice, ExporterStatus.AVAILABLE)
                assert (await lease(alice, name)).HasField("effective_end_time")
                second = await leased(bob)  # the exporter goes on
                async with reached(bob, second, place.directory) as session:
                    await ready(session)
                await released(bob, second)
                await known_as(alice, ExporterStatus.AVAILABLE)
                # There was nothing to clean up after alice.
                assert (place.directory / "after").read_text() == "bob\n"

    run(body)


def test_a_hook_that_takes_too_long_is_killed_with_all_it_started(place: Place) -> None:
    pids = place.directory / "pids"
    script = f"sleep 600 & echo $! > {pids}; trap '' TERM; while :; do sleep 0.1; done"
    config = place.exporter(hooks={"beforeLease": hook(script, timeout=0.5, onFailure="endLease")})

    async def body() -> None:
        with place.controller():
            async with place.serving(config), place.client() as alice:
                await known_as(alice, ExporterStatus.AVAILABLE)
                await leased(alice)
                message = await known_as(alice, ExporterStatus.BEFORE_LEASE_HOOK_FAILED)
                assert message == "beforeLease hook timed out after 0.5 seconds"
                child = Path(f"/proc/{pids.read_text().strip()}")
                await until(lambda: not child.exists() or "Z" in (child / "stat").read_text().split()[2])
                await known_as(alice, ExporterStatus.AVAILABLE)

    run(body)


def test_a_client_that_ends_its_session_sees_the_afterlease_hook_to_its_end(place: Place) -> None:
    config = place.exporter(hooks={"afterLease": hook("echo tidying; echo tidied")})

    async def body() -> None:
        with place.controller():
            async with place.serving(config), place.client() as alice:
                await known_as(alice, ExporterStatus.AVAILABLE)
                name = await leased(alice)
                async with reached(alice, name, place.directory) as session:
                    await ready(session)
                    logs = session.logs()
                    stub = session.connection.stub
                    assert (await stub.EndSession(jumpstarter_pb2.EndSessionRequest())).success
                    async for entry in logs:
                        if entry.message == "tidied":
                            assert entry.source == LogSource.AFTER_LEASE_HOOK
                            break
                    while (await session.status())[0] is not ExporterStatus.AVAILABLE:
                        await asyncio.sleep(0.01)
                await known_as(alice, ExporterStatus.AVAILABLE)
                assert (await lease(alice, name)).HasField("effective_end_time")  # the exporter gave it back

    run(body)


def test_a_transferred_lease_keeps_its_session_and_loses_its_old_client(place: Place) -> None:
    trace = place.directory / "trace"
    hooks = {
        "beforeLease": hook(f"echo before $CLIENT_NAME >> {trace}"),
        "afterLease": hook(f"echo after $CLIENT_NAME >> {trace}"),
    }
    config = place.exporter(hooks=hooks)

    async def body() -> None:
        with place.controller():
            async with place.serving(config), place.client() as alice, place.client("bob") as bob:
                await known_as(alice, ExporterStatus.AVAILABLE)
                name = await leased(alice)
                async with reached(alice, name, place.directory) as session:
                    await ready(session)
                    await session.node("power").call("on")
                    full = f"namespaces/default/leases/{name}"
                    changed = client_pb2.Lease(name=full, client="namespaces/default/clients/bob")
                    await alice.ask("UpdateLease", lease=changed)
                    async with reached(bob, name, place.directory) as bobs:
                        assert await bobs.node("power").call("status") == "on"
                    with pytest.raises(JumpstarterException):
                        await session.node("power").call("off")
                await released(bob, name)
                await known_as(bob, ExporterStatus.AVAILABLE)
                assert trace.read_text() == "before alice\nafter bob\n"

    run(body)


def test_driver_calls_are_in_the_audit_log_also_those_made_during_an_outage(place: Place) -> None:
    config = place.exporter(
        export={"power": {"type": POWER}, "echo": {"type": "jumpstarter_driver_network.driver.EchoNetwork"}}
    )

    async def body() -> None:
        with place.controller():
            async with wire(place, config) as relay, place.client() as alice:
                async with place.serving(config):
                    await known_as(alice, ExporterStatus.AVAILABLE)
                    name = await leased(alice)
                    async with reached(alice, name, place.directory) as session:
                        await ready(session)
                        await session.node("power").call("on")
                        async with session.node("echo").stream() as stream:
                            await stream.send(b"x")
                            assert await stream.receive() == b"x"
                        with pytest.raises(JumpstarterException):
                            await session.node("power").call("explode")
                        await relay.cut()
                        await session.node("power").call("off")
                        await relay.mend()

                    def calls() -> list[tuple[str, str, str, str, str, str]]:
                        return sorted(
                            (
                                *(e["actor"], e["lease"], e["exporter"], e["driver"], e["method"]),
                                # A byte stream ends when its client leaves, however that looks from here.
                                e["code"] if e["kind"] == "call" else "",
                            )
                            for e in place.lab.audit()
                            if e["action"] == "driver call"
                        )

                    who = ("client default/alice", name, "board")
                    wanted = [
                        (*who, "echo", "connect", ""),
                        (*who, "power", "explode", "NOT_FOUND"),
                        (*who, "power", "off", "OK"),
                        (*who, "power", "on", "OK"),
                    ]
                    await until(lambda: len(calls()) == len(wanted), "the calls in the audit log")
                    assert calls() == wanted

    run(body)


def test_drivers_are_built_once_and_reset_between_leases(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    for name in ("__post_init__", "reset", "close"):
        original = getattr(MockPower, name)

        def noted(self: MockPower, name: str = name, original: Any = original) -> None:
            happened.append(name)
            original(self)

        monkeypatch.setattr(MockPower, name, noted)
    config = place.exporter()

    async def body() -> None:
        with place.controller():
            async with place.client() as alice:
                async with place.serving(config):
                    await known_as(alice, ExporterStatus.AVAILABLE)
                    assert happened == ["__post_init__"]  # registration touches nothing
                    for _ in range(2):
                        name = await leased(alice)
                        await known_as(alice, ExporterStatus.LEASE_READY)
                        await released(alice, name)
                        await known_as(alice, ExporterStatus.AVAILABLE)
                assert happened == ["__post_init__", "reset", "reset", "reset", "close"]

    run(body)


def test_the_end_of_a_hold_in_a_lease_undoes_what_the_holder_did_and_not_what_the_hook_did(place: Place) -> None:
    gate = place.directory / "gate"
    hooks = {"beforeLease": hook(f"j supply on; until [ -e {gate} ]; do sleep 0.05; done")}
    config = place.exporter(export={"supply": {"type": POWER}, "board": {"type": POWER}}, hooks=hooks)

    async def body() -> None:
        with place.controller():
            async with place.serving(config), place.client() as alice:
                await known_as(alice, ExporterStatus.AVAILABLE)
                name = await leased(alice)

                async def states(session: Any) -> list[str]:
                    return [await session.node(path).call("status") for path in ("supply", "board")]

                async with reached(alice, name, place.directory) as session:

                    async def use() -> None:
                        async with session.hold("alice"):
                            await session.node("board").call("on")
                            assert await states(session) == ["on", "on"]

                    using = asyncio.create_task(use())
                    await asyncio.wait([using], timeout=0.3)
                    assert not using.done()  # the device is the hook's now
                    gate.touch()
                    await using
                    async with session.hold("alice again"):
                        assert await states(session) == ["on", "off"]
                await released(alice, name)
                await known_as(alice, ExporterStatus.AVAILABLE)
                gate.unlink()
                name = await leased(alice)
                async with reached(alice, name, place.directory) as session:
                    gate.touch()
                    await ready(session)
                    assert await states(session) == ["on", "off"]  # by the hook, which ran again

    run(body)


def test_a_hook_knows_the_context_of_the_lease_and_a_client_cannot_choose_its_variables(place: Place) -> None:
    seen = place.directory / "seen"
    config = place.exporter(hooks={"beforeLease": hook(f"env > {seen}")})

    async def body() -> None:
        with place.controller():
            async with place.serving(config), place.client() as alice:
                await known_as(alice, ExporterStatus.AVAILABLE)
                await leased(alice, context={"build-id": "77", "PATH": "/nowhere", "BASH_ENV": "/evil"})
                await known_as(alice, ExporterStatus.LEASE_READY)
                variables = dict(line.split("=", 1) for line in seen.read_text().splitlines() if "=" in line)
                assert variables["LEASE_CONTEXT_BUILD_ID"] == "77"
                assert variables["LEASE_CONTEXT_PATH"] == "/nowhere" != variables["PATH"]
                assert "BASH_ENV" not in variables
                assert (variables["CLIENT_NAME"], variables["JMP_EXPORTER"]) == ("alice", "board")

    run(body)
