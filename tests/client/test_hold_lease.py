# SPDX-License-Identifier: Apache-2.0
"""A lease is got, kept and given back, and its loss noticed, whatever happens around it."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from client_harness import room, until
from controller_harness import LabFiles

from jumpstarter.client import keeping
from jumpstarter.client.admin import PolicyRule, connect_admin
from jumpstarter.client.aio import connect
from jumpstarter.client.controller import ControllerClient, LeaseState, LeaseWish
from jumpstarter.client.lease import hold_lease
from jumpstarter.common.enums import ExporterStatus
from jumpstarter.common.exceptions import AuthenticationError, LeaseError

WISH = LeaseWish(selector="board=x", duration=600)


def run(body: Callable[[], Coroutine[Any, Any, None]], seconds: float = 240) -> None:
    async def limited() -> None:
        async with asyncio.timeout(seconds):
            await body()

    asyncio.run(limited())


async def lost(held: Any) -> str:
    async with asyncio.timeout(60):
        return str(await asyncio.shield(held.lost))


async def fail(controller: ControllerClient, wish: LeaseWish | str, **options: Any) -> LeaseError:
    """The error of a lease that cannot be had."""
    with pytest.raises(LeaseError) as caught:
        async with hold_lease(controller, wish, **options):
            raise AssertionError("it was had")
    assert "\n" not in str(caught.value)
    return caught.value


def test_an_exporter_is_leased_used_and_given_back(lab: LabFiles, tmp_path: Path) -> None:
    async def body() -> None:
        async with room(lab, tmp_path) as place:
            alice = await place.client("alice")
            states: list[LeaseState] = []
            async with hold_lease(alice, WISH, on_state=states.append) as held:
                assert held.info.exporter == "e0" and held.info.client == "alice"
                assert 500 < (held.time_left or 0) <= 600
                async with held.serve_unix(tmp_path / "s") as path:
                    async with connect(path) as session:
                        await session.node("power").call("on")
                        assert await session.node("power").call("status") == "on"
                assert not held.lost.done() and not Path(path).exists()
                name = held.name
            ended = await alice.get_lease(name)
            assert (ended.state, ended.reason) == ("ended", "Released")
            assert states[0].lease.name == name and states[-1].lease.state == "ready"

    run(body)


def test_a_lease_that_cannot_be_watched_any_more_is_given_back_all_the_same(lab: LabFiles, tmp_path: Path) -> None:
    async def body() -> None:
        async with room(lab, tmp_path) as place:
            alice = await place.client("alice")

            def on_state(state: LeaseState) -> None:
                if state.lease.state == "ready":
                    raise RuntimeError("a mistake in here")

            with pytest.raises(RuntimeError, match="a mistake in here"):
                async with hold_lease(alice, WISH, on_state=on_state):
                    raise AssertionError("it was had")
            assert await alice.list_leases() == []

    run(body)


def test_an_exporter_is_leased_by_its_name(lab: LabFiles, tmp_path: Path) -> None:
    async def body() -> None:
        async with room(lab, tmp_path, boards=3) as place:
            alice = await place.client("alice")
            async with hold_lease(alice, LeaseWish(exporter_name="e1", duration=60)) as held:
                assert held.info.exporter == "e1"
                found = {exporter.name: exporter for exporter in await alice.list_exporters()}
                assert (found["e1"].lease, found["e1"].client) == (held.name, "alice")
                assert found["e0"].lease is None and found["e2"].online

    run(body)


def test_who_waits_is_told_its_place_and_is_served_in_turn(lab: LabFiles, tmp_path: Path) -> None:
    async def body() -> None:
        async with room(lab, tmp_path) as place:
            alice, bob, carol = [await place.client(name) for name in ("alice", "bob", "carol")]
            told: dict[str, list[LeaseState]] = {"bob": [], "carol": []}
            order: list[str] = []

            async def wait(client: ControllerClient) -> None:
                async with hold_lease(client, WISH, on_state=told[client.name].append):
                    order.append(client.name)

            async with hold_lease(alice, WISH):
                waiting = [asyncio.create_task(wait(bob))]
                await until(lambda: told["bob"] and told["bob"][-1].position == 1)
                waiting.append(asyncio.create_task(wait(carol)))
                await until(lambda: told["carol"] and told["carol"][-1].position == 2)
                assert told["carol"][-1].line.startswith("place 2 of 2 in the queue: ")
                assert "e0" in told["carol"][-1].message
            await asyncio.gather(*waiting)
            assert order == ["bob", "carol"]

    run(body)


def test_giving_up_says_what_it_waited_for_and_leaves_no_lease(lab: LabFiles, tmp_path: Path) -> None:
    async def body() -> None:
        async with room(lab, tmp_path) as place:
            alice, bob = await place.client("alice"), await place.client("bob")
            async with hold_lease(alice, WISH):
                for timeout in (0.5, 4, 32):  # the controller may be too slow to tell the place in time
                    error = await fail(bob, WISH, acquisition_timeout=timeout)
                    assert error.code == "DEADLINE_EXCEEDED"
                    if "place" in str(error):
                        break
                assert error.state == "pending"
                assert f'"board=x" within {timeout:g} s: place 1 of 1 in the queue: ' in str(error)
                assert [lease.client for lease in await bob.list_leases()] == ["alice"]

    run(body)


@pytest.mark.parametrize("release", [True, False])
def test_a_wait_that_is_cancelled_leaves_no_lease(lab: LabFiles, tmp_path: Path, release: bool) -> None:
    async def body() -> None:
        async with room(lab, tmp_path) as place:
            alice, bob = await place.client("alice"), await place.client("bob")
            states: list[LeaseState] = []

            async def wait() -> None:
                async with hold_lease(bob, WISH, release=release, on_state=states.append):
                    raise AssertionError("alice has it")

            async with hold_lease(alice, WISH):
                waiting = asyncio.create_task(wait())
                await until(lambda: states)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                assert [lease.client for lease in await bob.list_leases()] == ["alice"]

    run(body)


def test_a_creation_that_is_cancelled_leaves_no_lease(lab: LabFiles, tmp_path: Path) -> None:
    """The answer was on its way: nobody knows the lease's name but us."""

    async def body() -> None:
        async with room(lab, tmp_path) as place:
            alice = await place.client("alice")
            made = asyncio.Event()
            create = alice.create_lease

            async def slow(wish: LeaseWish) -> Any:
                await create(wish)
                made.set()
                await asyncio.Event().wait()

            alice.create_lease = slow  # type: ignore[method-assign]

            async def hold() -> None:
                async with hold_lease(alice, WISH):
                    raise AssertionError("the answer never came")

            holding = asyncio.create_task(hold())
            await made.wait()
            assert len(await alice.list_leases()) == 1
            holding.cancel()
            with pytest.raises(asyncio.CancelledError):
                await holding
            assert await alice.list_leases() == []

    run(body)


def test_leases_that_cannot_be_had(lab: LabFiles, tmp_path: Path) -> None:
    async def body() -> None:
        async with room(lab, tmp_path) as place:
            alice, bob = await place.client("alice"), await place.client("bob")
            error = await fail(alice, LeaseWish(selector="board=y", duration=60))
            assert error.state == "unsatisfiable" and 'no exporter for "board=y": ' in str(error)
            error = await fail(alice, LeaseWish(exporter_name="e9", duration=60))
            assert error.state == "unsatisfiable" and "e9" in str(error)
            error = await fail(alice, LeaseWish(selector="board = = x", duration=60))
            assert error.code == "INVALID_ARGUMENT"
            assert str(error).startswith(f'controller {lab.endpoint}: create lease for "board = = x": ')
            assert (await fail(alice, LeaseWish(selector="board=x", duration=-1))).code == "INVALID_ARGUMENT"
            assert (await fail(alice, LeaseWish(selector="board=x"), release=False)).code == "INVALID_ARGUMENT"
            assert (await fail(alice, "nosuch")).code == "NOT_FOUND"
            async with hold_lease(alice, WISH) as held:
                assert f"lease {held.name} belongs to client alice" in str(await fail(bob, held.name))
            error = await fail(alice, held.name)
            assert error.state == "ended" and f"lease {held.name} has already ended: " in str(error)

    run(body)


def test_an_existing_lease_is_used_and_kept(lab: LabFiles, tmp_path: Path) -> None:
    async def body() -> None:
        async with room(lab, tmp_path) as place:
            alice = await place.client("alice")
            made = await alice.create_lease(LeaseWish(selector="board=x", duration=600, heartbeat=4))
            beats: list[float] = []
            beat = alice.heartbeat

            async def counted(name: str) -> float:
                within = await beat(name)
                beats.append(asyncio.get_running_loop().time())
                return within

            alice.heartbeat = counted  # type: ignore[method-assign]
            async with hold_lease(alice, made.name) as held:
                assert not held.own
                # It was made with a heartbeat, and who holds it keeps it alive for longer than it may be silent.
                await until(lambda: beats and beats[-1] - beats[0] > 5)
                async with held.serve_unix(tmp_path / "s") as path, connect(path) as session:
                    assert session.name == "e0"
            assert (await alice.get_lease(made.name)).state == "ready"
            await alice.delete_lease(made.name)

    run(body)


def test_a_lease_that_is_not_released_stays(lab: LabFiles, tmp_path: Path) -> None:
    async def body() -> None:
        async with room(lab, tmp_path, boards=2) as place:
            alice = await place.client("alice")
            async with hold_lease(alice, WISH, release=False) as held:
                assert not held.release
            assert (await alice.get_lease(held.name)).state == "ready"
            async with hold_lease(alice, WISH, release=False) as other:
                other.release = True
            assert (await alice.get_lease(other.name)).state == "ended"

    run(body)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("expire", "has ended: .*expired"),
        ("release", "has ended: .*released?"),
        ("transfer", "was transferred to client bob"),
        ("exporter", "has ended: .*released by its exporter"),
    ],
)
def test_a_loss_is_noticed_at_once(lab: LabFiles, tmp_path: Path, how: str, reason: str) -> None:
    async def body() -> None:
        async with room(lab, tmp_path) as place:
            alice = await place.client("alice")
            await place.client("bob")
            async with hold_lease(alice, WISH) as held:
                if how == "expire":
                    await held.extend(0.5)
                elif how == "release":
                    await alice.delete_lease(held.name)
                elif how == "transfer":
                    await alice.update_lease(held.name, client="bob")
                elif how == "exporter":
                    await place.boards[0].peer.status(ExporterStatus.AVAILABLE, release_lease=True)
                assert re.fullmatch(f"lease {held.name} {reason}.*", await lost(held))
            lease = await alice.get_lease(held.name)
            assert lease.ended == (how != "transfer")  # what is not ours any more is not given back

    run(body)


def test_extending_moves_the_end(lab: LabFiles, tmp_path: Path) -> None:
    async def body() -> None:
        async with room(lab, tmp_path) as place:
            alice = await place.client("alice")
            async with hold_lease(alice, LeaseWish(selector="board=x", duration=300)) as held:
                await held.extend(1000)
                assert 900 < (held.time_left or 0) <= 1000
                await held.extend(1)
                assert "expired" in await lost(held)

    run(body)


def test_a_lease_without_duration_is_renewed(lab: LabFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_SHORT", 8.0)
    monkeypatch.setattr(keeping, "_GUARDED", 8.0)
    monkeypatch.setattr(keeping, "_LEAST_GAIN", 0.2)

    async def body() -> None:
        async with room(lab, tmp_path) as place:
            alice = await place.client("alice")
            async with hold_lease(alice, LeaseWish(selector="board=x")) as held:
                assert held.time_left is None
                await until(lambda: (held.info.duration or 0) > 12)  # after two renewals
                assert not held.lost.done()
            async with hold_lease(alice, LeaseWish(selector="board=x", duration=5, heartbeat=0)) as held:
                assert (held.info.duration or 9) <= 5
                assert "expired" in await lost(held)
            assert 4.9 < ((await alice.get_lease(held.name)).duration or 9) <= 5  # no renewal goes beyond what it may

    run(body)


def test_renewals_go_as_far_as_they_may_and_tell(
    lab: LabFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeping, "_SHORT", 10.0)
    monkeypatch.setattr(keeping, "_GUARDED", 100.0)
    monkeypatch.setattr(keeping, "_LEAST_GAIN", 1.0)

    async def body() -> None:
        async with room(lab, tmp_path) as place:
            alice = await place.client("alice")
            update = alice.update_lease

            async def limited(name: str, *, duration: float | None = None, **more: Any) -> Any:
                if duration is not None and duration > 30:
                    raise LeaseError("no", code="PERMISSION_DENIED", details="no policy lets client alice have it")
                return await update(name, duration=duration, **more)

            alice.update_lease = limited  # type: ignore[method-assign]
            with caplog.at_level(logging.WARNING):
                async with hold_lease(alice, LeaseWish(selector="board=x")) as held:
                    await until(lambda: "cannot be renewed further" in caplog.text)
                    assert 15 < (held.time_left or 0) <= 30  # longer than the 10 s of the beginning

    run(body)


def test_a_controller_of_0_9_is_polled_and_its_short_leases_renewed(
    lab: LabFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def knows_nothing(self: ControllerClient) -> None:
        pass

    monkeypatch.setattr(ControllerClient, "learn", knows_nothing)
    monkeypatch.setattr(keeping, "_SHORT", 8.0)
    monkeypatch.setattr(keeping, "_LEAST_GAIN", 0.2)

    async def body() -> None:
        async with room(lab, tmp_path) as place:
            alice, bob = await place.client("alice"), await place.client("bob")
            assert not alice.lab and [e.name for e in await alice.list_exporters()] == ["e0"]
            states: list[LeaseState] = []

            async def wait() -> None:
                async with hold_lease(bob, LeaseWish(selector="board=x", duration=600), on_state=states.append):
                    pass

            async with hold_lease(alice, LeaseWish(selector="board=x", duration=600)) as held:
                assert held.info.duration == 8
                waiting = asyncio.create_task(wait())
                await until(lambda: states and (held.info.duration or 0) > 12)
                assert not held.lost.done() and states[-1].lease.state == "pending"
            await waiting
            async with hold_lease(alice, LeaseWish(selector="board=x", duration=600)) as held:
                await bob.get_lease(held.name)
                await alice.delete_lease(held.name)
                assert "has ended" in await lost(held)

    run(body)


def test_a_token_that_is_refused(lab: LabFiles, tmp_path: Path) -> None:
    async def body() -> None:
        async with room(lab, tmp_path) as place:
            config = place.config("alice")
            good, config.token = config.token, "nonsense"
            alice = await place.client("alice", config)
            with pytest.raises(AuthenticationError, match="jmp login"):
                config.path = None
                await alice.list_leases()
            # What was logged in meanwhile is taken from the file.
            config.path = lab.folder / "client-alice.yaml"
            assert await alice.list_leases() == [] and config.token == good

    run(body)


def test_insecure_trusts_the_certificate_that_is_there(lab: LabFiles, tmp_path: Path) -> None:
    async def body() -> None:
        async with room(lab, tmp_path) as place:
            config = place.config("alice")
            config.tls.ca, config.tls.insecure = "", True
            alice = await place.client("alice", config)
            async with hold_lease(alice, WISH) as held:
                async with held.serve_unix(tmp_path / "s") as path, connect(path) as session:
                    assert session.name == "e0"

    run(body)


def test_a_controller_that_cannot_be_verified_is_not_used(lab: LabFiles, tmp_path: Path) -> None:
    async def body() -> None:
        async with room(lab, tmp_path) as place:
            config = place.config("alice")
            config.tls.ca = ""
            with pytest.raises(Exception, match=f"controller {lab.endpoint}: it does not answer"):
                await place.client("alice", config)

    run(body)


def test_a_lease_that_is_taken_away_is_announced_before(tmp_path: Path) -> None:
    """Spot leases, for which a policy allows no better, make room for others."""
    lab = LabFiles.make(tmp_path / "lab", leases={"spotGrace": "20s"})

    async def body() -> None:
        async with room(lab, tmp_path) as place:
            guest = await place.client("guest")
            member = await place.client("member", place.config("member", "-l", "team=a"))
            rules = [PolicyRule(clients="team=a", priority=1), PolicyRule(spot=True)]
            async with connect_admin(place.config("root", "--admin")) as admin:
                await admin.set_policy("all", "board=x", rules)
            states: list[LeaseState] = []
            async with hold_lease(guest, WISH, on_state=states.append) as held:
                assert held.state.spot
                waiting = asyncio.create_task(_hold_and_give_back(member))
                await until(lambda: any(state.preempted_at is not None and not state.ended for state in states))
                await place.turn_clock(21)  # the time it is given is over when everybody has heard of it
                assert "has ended" in await lost(held)
                await waiting
                assert held.info.reason == "Preempted"

    run(body)


async def _hold_and_give_back(controller: ControllerClient) -> None:
    async with hold_lease(controller, WISH):
        pass
