# SPDX-License-Identifier: Apache-2.0
"""What a lease from a controller is asked with, what a wait for it says, how its connections are shared."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from jumpstarter.client.records import Condition, LeaseInfo, LeaseState
from jumpstarter.common.exceptions import LeaseError
from jumpstarter_agent import controllers
from jumpstarter_agent.controller_lease import _take
from jumpstarter_agent.controllers import ClientRef, Controllers
from jumpstarter_agent.errors import AgentError, as_agent_error, as_controller_error
from jumpstarter_agent.lease import LeaseOptions
from jumpstarter_agent.lease_wish import NAME_TAG, Wish, find_by_name, make_wish
from jumpstarter_agent.reach import ControllerReach, parse_reach
from jumpstarter_agent.waiting import Waiting

REACH = ControllerReach(selector="board=x")


class Shown:
    """Keeps what a task would be shown."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str, **_: Any) -> None:
        self.lines.append(text)

    def record(self, kind: str, **_: Any) -> None:
        raise AssertionError(kind)

    def session_changed(self) -> None:
        raise AssertionError


def state(kind: str = "Pending", message: str = "all 3 matching exporters are leased", **fields: Any) -> LeaseState:
    condition = Condition(kind, "True", "Why", message)
    ended = kind in ("Unsatisfiable", "Invalid")
    return LeaseState(LeaseInfo("default", "l1", conditions=(condition,)), ended=ended, message=message, **fields)


def test_a_host_is_leased_by_selector_or_name_with_the_client_it_names() -> None:
    given = {"selector": "board=x", "exporter": "e1", "client_config": "/etc/me.yaml"}
    assert parse_reach(given) == ControllerReach("board=x", "e1", ClientRef(config="/etc/me.yaml"))
    assert parse_reach({"exporter": "e1", "client": "me"}).target == "exporter e1"


@pytest.mark.parametrize(
    ("reach", "words"),
    [
        ({"selector": "a=b", "endpoint": "lab:1"}, "more than one way"),
        ({"selector": "a=b", "client": "me", "client_config": "/c.yaml"}, "exclude each other"),
        ({"selector": "a=b", "client_config": "c.yaml"}, "not an absolute path"),
        ({"selector": "a=b", "insecure": True}, "unknown field 'insecure'"),
        ({"client": "me"}, "no way to its device"),
    ],
)
def test_a_reach_that_makes_no_sense_is_refused(reach: dict[str, Any], words: str) -> None:
    with pytest.raises(AgentError, match=words) as error:
        parse_reach(reach)
    assert error.value.code == "invalid"


async def _wait_lines(states: list[LeaseState]) -> list[str]:
    shown = Shown()
    waiting = Waiting(REACH.target, shown)
    for one in states:
        waiting.state(one)
    waiting.over()
    return shown.lines


def test_a_wait_shows_the_place_in_the_queue_whenever_it_changes() -> None:
    states = [state(position=2, waiting=5), state(position=2, waiting=5), state(position=1, waiting=4), state("Ready")]
    assert asyncio.run(_wait_lines(states)) == [
        "waiting for a lease: 2 of 5, all 3 matching exporters are leased",
        "waiting for a lease: 1 of 4, all 3 matching exporters are leased",
    ]


def test_a_wait_in_which_nothing_moves_is_mentioned_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jumpstarter_agent.waiting.REPEAT_SECONDS", 0.01)

    async def run() -> list[str]:
        shown = Shown()
        waiting = Waiting(REACH.target, shown)
        waiting.state(state(position=1, waiting=1))
        async with asyncio.timeout(10):
            while len(shown.lines) < 3:
                await asyncio.sleep(0.005)
        waiting.over()
        return shown.lines

    assert len(set(asyncio.run(run()))) == 1


@pytest.mark.parametrize(("kind", "code"), [("Unsatisfiable", "unsatisfiable"), ("Invalid", "invalid")])
def test_a_lease_that_is_refused_has_the_controllers_reason(kind: str, code: str) -> None:
    async def run() -> AgentError:
        waiting = Waiting(REACH.target, Shown())
        waiting.state(state(kind, "nobody may have it"))
        return waiting.refused(AgentError("busy", "no"))

    error = asyncio.run(run())
    assert error.code == code
    assert error.message.startswith("no lease of an exporter with board=x: nobody may have it")


class Book:
    """A controller's leases."""

    name = "me"

    def __init__(self, *leases: LeaseInfo) -> None:
        self._leases = {lease.name: lease for lease in leases}

    async def get_lease(self, name: str) -> LeaseInfo:
        if name not in self._leases:
            raise LeaseError(f"lease {name} not found", code="NOT_FOUND")
        return self._leases[name]

    async def list_leases(self, *, tag_filter: str) -> list[LeaseInfo]:
        key, _, value = tag_filter.partition("=")
        return [lease for lease in self._leases.values() if lease.tags.get(key) == value and not lease.ended]


def lease(name: str, client: str = "me", *, ended: bool = False, **fields: Any) -> LeaseInfo:
    condition = Condition("Ready", "False" if ended else "True", "", "")
    return LeaseInfo("default", name, client=client, conditions=(condition,), **fields)


def wish(book: Book, **options: Any) -> Any:
    return asyncio.run(make_wish(book, REACH, {"holder": "h" * 99}, LeaseOptions(**options)))


def test_a_lease_has_the_users_name_where_it_is_free() -> None:
    asked = wish(Book(), name="nightly-42", duration=60.0, wish=Wish(tags={"job": "1"}))
    assert (asked.name, asked.tags, asked.selector, asked.duration) == ("nightly-42", {"job": "1"}, "board=x", 60.0)
    assert asked.context == {"holder": "h" * 64}, "as long as a controller takes it"


@pytest.mark.parametrize("name", ["nightly-42", "Nightly_42"])
def test_a_name_that_cannot_be_had_becomes_a_tag(name: str) -> None:
    asked = wish(Book(lease("nightly-42", ended=True)), name=name)
    assert asked.name.startswith("nightly-42-") and asked.tags == {NAME_TAG: name}
    found = asyncio.run(find_by_name(Book(lease("other"), lease(asked.name, tags=asked.tags)), name))
    assert found == asked.name


def test_a_name_that_somebody_else_holds_is_busy_and_one_that_has_ended_is_none() -> None:
    with pytest.raises(AgentError, match="held by client bob") as error:
        asyncio.run(find_by_name(Book(lease("nightly", "bob")), "nightly"))
    assert error.value.code == "busy"
    assert asyncio.run(find_by_name(Book(lease("nightly", ended=True)), "nightly")) is None


def test_only_a_lease_that_ends_with_the_run_has_a_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wish(Book()).heartbeat == 60.0
    assert wish(Book(), name="n", lifetime="detached").heartbeat is None
    monkeypatch.setenv("JUMPSTARTER_LEASE_HEARTBEAT", "5s")
    assert wish(Book()).heartbeat == 5.0
    monkeypatch.setenv("JUMPSTARTER_LEASE_HEARTBEAT", "soon")
    with pytest.raises(AgentError, match="JUMPSTARTER_LEASE_HEARTBEAT"):
        wish(Book())


def test_a_lasting_lease_that_is_cancelled_while_it_is_asked_for_is_given_back() -> None:
    deleted: list[str] = []

    async def run() -> None:
        asked = asyncio.Event()

        class Slow(Book):
            async def create_lease(self, _: Any) -> None:
                asked.set()  # the controller has it; its answer is on the way
                await asyncio.Event().wait()

            async def delete_lease(self, name: str) -> None:
                deleted.append(name)

        options = LeaseOptions(name="nightly", lifetime="detached", duration=60.0, wish=Wish(timeout=60.0))
        async with AsyncExitStack() as stack:
            waiting = Waiting(REACH.target, Shown())
            taking = asyncio.create_task(_take(stack, Slow(), REACH, {}, options, waiting))
            await asked.wait()
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)

    asyncio.run(run())
    assert deleted == ["nightly"]


def test_a_controller_that_cannot_be_reached_is_no_lost_exporter() -> None:
    from jumpstarter.common.exceptions import AuthenticationError, ConnectionError

    assert as_controller_error(ConnectionError("away")).code == "controller_lost"
    assert as_controller_error(AuthenticationError("who?")).code == "refused"
    assert as_agent_error(LeaseError("no", code="PERMISSION_DENIED")).code == "refused"


def test_hosts_of_one_client_share_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    closed: list[str] = []

    @asynccontextmanager
    async def connect(config: Any) -> Any:
        opened.append(config.metadata.name)
        yield object()
        closed.append(config.metadata.name)

    monkeypatch.setattr(controllers, "_client_connection", connect)
    refs = {}
    for name in ("a", "b"):
        path = tmp_path / f"{name}.yaml"
        metadata = {"namespace": "default", "name": name}
        document = {"apiVersion": "jumpstarter.dev/v1alpha1", "kind": "ClientConfig", "metadata": metadata}
        path.write_text(yaml.safe_dump({**document, "endpoint": "lab:1", "token": "t"}))
        refs[name] = ClientRef(config=str(path))

    async def run() -> None:
        table = Controllers()
        found = await asyncio.gather(*(table.get(refs[name]) for name in ("a", "b", "a", "a")))
        assert len({id(one) for one in found}) == 2
        await table.aclose()
        with pytest.raises(AgentError, match="ending"):
            await table.get(refs["a"])

    asyncio.run(run())
    assert (sorted(opened), sorted(closed)) == (["a", "b"], ["a", "b"])


def test_a_connection_that_fails_is_tried_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[BaseException | None] = [OSError(111, "Connection refused"), None]

    @asynccontextmanager
    async def connect(config: Any) -> Any:
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome
        yield "open"

    monkeypatch.setattr(controllers, "_client_connection", connect)
    path = tmp_path / "a.yaml"
    metadata = {"namespace": "default", "name": "a"}
    document = {"apiVersion": "jumpstarter.dev/v1alpha1", "kind": "ClientConfig", "metadata": metadata}
    path.write_text(yaml.safe_dump({**document, "endpoint": "lab:1", "token": "t"}))

    async def run() -> Any:
        table = Controllers()
        with pytest.raises(AgentError):
            await table.get(ClientRef(config=str(path)))
        value = await table.get(ClientRef(config=str(path)))
        await table.aclose()
        return value

    assert asyncio.run(run()) == "open"
