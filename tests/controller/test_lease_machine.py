# SPDX-License-Identifier: Apache-2.0
"""Random histories of a lab with two controllers, and what must hold after every step of every one of them.

A failure names the seed and prints the steps; the same seed gives the same history again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from queue_bench import NAMESPACE, START, QueueBench
from sqlalchemy import select

from jumpstarter.common.enums import ExporterStatus
from jumpstarter_controller import exporters
from jumpstarter_controller.administration.policies import delete_policy
from jumpstarter_controller.administration.subjects import change_subject
from jumpstarter_controller.errors import Refused
from jumpstarter_controller.identity import Caller
from jumpstarter_controller.state.models import Exporter, Lease

STEPS = 120
BOARDS = ("x", "y")
TEAMS = ("a", "b")
RULES = {
    "everybody": ("", "", 0, 400.0, False),
    "guests": ("", "", 0, None, True),
    "team-a": ("board=x", "team=a", 5, None, False),
    "team-b": ("board=y", "team=b", 7, 300.0, False),
}


@dataclass
class World:
    """What the state ought to be, kept by the simplest means."""

    labels: dict[str, str] = field(default_factory=dict)  # exporter: board
    enabled: dict[str, bool] = field(default_factory=dict)
    rules: dict[str, tuple[str, str, int, float | None, bool]] = field(default_factory=dict)
    teams: dict[str, str] = field(default_factory=dict)

    def grant(self, exporter: str, client: str, duration: float) -> tuple[bool, int] | None:
        """(spot, -priority) of the best rule."""
        if not self.rules:
            return (False, 0)
        board, team = f"board={self.labels[exporter]}", f"team={self.teams[client]}"
        return min(
            (
                (spot, -priority)
                for boards, clients, priority, most, spot in self.rules.values()
                if boards in ("", board) and clients in ("", team) and (most is None or duration <= most)
            ),
            default=None,
        )

    def may_have(self, lease: Lease, exporter: str) -> tuple[bool, int] | None:
        """The grant if the exporter is what the lease asked for."""
        if lease.exporter_name not in (None, exporter):
            return None
        if lease.selector and not any(self.labels[exporter] == board and (board in lease.selector) for board in BOARDS):
            return None
        if not self.enabled[exporter] and not lease.allow_disabled:
            return None
        return self.grant(exporter, lease.client.name, lease.duration)


def place(reserved: bool, spot: bool, grant: tuple[bool, int], sequence: int) -> tuple[Any, ...]:
    """Where a lease stands; spot: what it has reserved gives way to those that are not."""
    return (not (reserved and not spot), grant[0], not (reserved and spot), grant[1], sequence)


class History:
    """One random history."""

    def __init__(self, seed: int, place: str) -> None:
        self.random = random.Random(seed)
        self.steps: list[str] = []
        self.world = World()
        self.benches = [QueueBench(place), QueueBench(place)]
        self.clients: dict[str, Caller] = {}
        self.exporters: dict[str, Caller] = {}
        self.deadline: float | None = None
        self.before: dict[str, Lease] = {}
        for i, team in enumerate((*TEAMS, *TEAMS)):
            self.clients[f"c{i}"] = self.bench.client(f"c{i}", team=team)
            self.world.teams[f"c{i}"] = team
        for i in range(4):
            self.exporters[f"e{i}"] = self.bench.exporter(f"e{i}", board=BOARDS[i % 2])
            self.world.labels[f"e{i}"] = BOARDS[i % 2]
            self.world.enabled[f"e{i}"] = True
        if seed % 2:  # the others begin without policies
            for _ in RULES:
                self.policy()

    @property
    def bench(self) -> QueueBench:
        """One of the two controllers."""
        return self.random.choice(self.benches)

    @property
    def now(self) -> float:
        return self.benches[0].now

    @now.setter
    def now(self, value: float) -> None:
        for bench in self.benches:
            bench.now = value

    def close(self) -> None:
        for bench in self.benches:
            bench.database.close()

    # --- what happens ---------------------------------------------------------------------------------------------

    def step(self) -> None:
        actions: list[tuple[int, Callable[[], str]]] = [
            (10, self.create),
            (5, self.release),
            (8, self.update),
            (6, self.exporter),
            (2, self.switch),
            (2, self.policy),
            (2, self.relabel),
            (3, self.beat),
            (8, self.pass_time),
        ]
        action = self.random.choices([a for _, a in actions], [w for w, _ in actions])[0]
        self.steps.append(f"{self.now - START:g}: {action.__name__}: {action()}")
        known = [bench.deadline for bench in self.benches if bench.deadline is not None]
        self.deadline = min(known, default=None)

    def create(self) -> str:
        pick = self.random
        wish: dict[str, Any] = {
            "name": f"l{len(self.steps)}",
            "selector": pick.choice(["board=x", "board=y", "board in (x,y)"]),
            "duration": float(pick.choice([30, 100, 300, 500])),
            "allow_disabled": pick.random() < 0.1,
            "wait_for_match": pick.random() < 0.3,
        }
        if pick.random() < 0.2:
            wish |= {"selector": "", "exporter_name": pick.choice(list(self.exporters))}
        if pick.random() < 0.3:
            wish["begin"] = self.now + pick.choice([-20, 50, 200, 400])
        if pick.random() < 0.3:
            wish["heartbeat"] = 40.0
        if pick.random() < 0.3:
            wish["minimum"] = 20.0
        client = pick.choice(list(self.clients))
        return f"{client} {wish} -> {self.tried(lambda: self.bench.lease(self.clients[client], **wish))}"

    def tried(self, what: Callable[[], Any]) -> str:
        try:
            return str(what())
        except Refused as refused:
            return refused.message

    def active(self) -> list[Lease]:
        def read(tx: Any) -> list[Lease]:
            query = select(Lease).where(~Lease.ended).order_by(Lease.sequence)
            return list(tx.session.scalars(query).all())

        return self.benches[0].database.write_now(read)

    def some_lease(self) -> Lease | None:
        leases = self.active()
        return self.random.choice(leases) if leases else None

    def release(self) -> str:
        lease = self.some_lease()
        if lease is None:
            return "nothing"
        self.bench.release(self.clients[lease.client.name], lease.name)
        return lease.name

    def update(self) -> str:
        lease = self.some_lease()
        if lease is None:
            return "nothing"
        pick = self.random
        change = pick.choice(
            [
                {"duration": float(pick.choice([20, 150]))},
                {"duration": 450.0},
                {"end": self.now + pick.choice([10, 250])},
                {"begin": self.now + pick.choice([-10, 30, 150])},
                {"client": pick.choice(list(self.clients))},
                {"clear": frozenset({"begin", "end"})},
            ]
        )
        owner = self.clients[lease.client.name]
        done = self.tried(lambda: self.bench.update(owner, lease.name, **change))
        return f"{lease.name} {change} -> {done}"

    def exporter(self) -> str:
        name = self.random.choice(list(self.exporters))
        caller = self.exporters[name]
        what = self.random.choice(["available", "available", "hook", "gone", "back", "back", "releases"])
        if what == "available":
            self.bench.status(caller, ExporterStatus.AVAILABLE)
        elif what == "hook":
            self.bench.status(caller, ExporterStatus.AFTER_LEASE_HOOK)
        elif what == "gone":
            self.bench.change(exporters.disconnected, caller)
        elif what == "back":
            self.bench.change(exporters.connected, caller)
        else:
            self.bench.status(caller, ExporterStatus.AVAILABLE, release=True)
        return f"{name} {what}"

    def switch(self) -> str:
        name, enabled = self.random.choice(list(self.exporters)), self.random.random() < 0.6
        self.world.enabled[name] = enabled
        self.bench.enable(name, enabled)
        return f"{name} {enabled}"

    def policy(self) -> str:
        name = self.random.choice(list(RULES))
        if name in self.world.rules:
            del self.world.rules[name]
            self.bench.change(delete_policy, "test", NAMESPACE, name)
            return f"without {name}"
        self.world.rules[name] = RULES[name]
        boards, clients, priority, most, spot = RULES[name]
        self.bench.policy_rule(name, boards, clients, priority=priority, maximum=most, spot=spot)
        return f"with {name}"

    def relabel(self) -> str:
        name, board = self.random.choice(list(self.exporters)), self.random.choice(BOARDS)
        self.world.labels[name] = board
        self.bench.change(change_subject, "test", "exporter", NAMESPACE, name, labels={"board": board})
        return f"{name} {board}"

    def beat(self) -> str:
        beating = [lease for lease in self.active() if lease.heartbeat is not None]
        for lease in beating:
            # The one controller of this replica hears it, and has written it down when another one looks.
            for bench in self.benches:
                bench.beats.beat(lease, self.now)
        return f"{len(beating)}"

    def pass_time(self) -> str:
        until = self.now + self.random.choice([1, 10, 40, 130])
        while self.deadline is not None and self.deadline <= until:
            self.now = max(self.now, self.deadline)
            self.bench.change(lambda tx: None)
            for bench in self.benches:
                bench.deadline = None if bench.deadline is None else max(bench.deadline, self.now)
            self.deadline = self.random.choice(self.benches).deadline
            deadlines = []
            for bench in self.benches:
                bench.change(lambda tx: None)
                deadlines.append(bench.deadline)
            assert deadlines[0] == deadlines[1], "two controllers disagree on what comes next"
            self.deadline = deadlines[0]
            assert self.deadline is None or self.deadline > self.now, "the clockwork would spin"
            self.check()
        self.now = until
        return f"to {until - START:g}"

    # --- what must hold -------------------------------------------------------------------------------------------

    def check(self) -> None:
        leases = self.active()
        held = [lease for lease in leases if lease.exporter_id is not None]
        boards = self._boards()
        assert len({lease.exporter_id for lease in held}) == len(held), "an exporter has two leases"
        for lease in leases:
            assert lease.expires_at is None or lease.expires_at > self.now, "a lease outlives its time"
            assert lease.preempted_at is None or lease.preempted_at > self.now, "a lease outlives its preemption"
            self._check_conditions(lease)
        self._check_reservations(leases)
        gained = [
            lease for lease in held if lease.name not in self.before or self.before[lease.name].exporter_id is None
        ]
        for lease in gained:
            assert lease.exporter is not None
            name = lease.exporter.name
            right = self.world.may_have(lease, name)
            assert right is not None, "a policy was not kept"
            if lease.minimum is None:  # else it may be shorter now than when its right was looked up
                assert right == (lease.spot, -lease.priority), "another right than the best"
            self._check_order(lease, name, leases)
        self._check_nothing_idle(leases, boards)
        self.before = {lease.name: lease for lease in leases}

    def _boards(self) -> dict[str, Exporter]:
        rows = self.benches[0].database.write_now(lambda tx: tx.session.scalars(select(Exporter)).all())
        return {row.name: row for row in rows}

    def _check_conditions(self, lease: Lease) -> None:
        last = lease.conditions[-1]
        pending = [c["status"] for c in lease.conditions if c["type"] == "Pending"]
        if lease.exporter_id is not None:
            assert (last["type"], last["status"]) == ("Ready", "True") and pending in ([], ["False"]), lease.conditions
        else:
            assert (last["type"], last["status"]) == ("Pending", "True"), lease.conditions

    def _check_reservations(self, leases: list[Lease]) -> None:
        reserved = [lease for lease in leases if lease.exporter_id is None and lease.reserved_id is not None]
        for lease in reserved:
            begin, end = lease.begin_time, lease.expires_at
            assert begin is not None and end is not None
            if lease.spot:
                continue  # it gives way
            for other in leases:
                if other is lease or other.spot or lease.reserved_id not in (other.exporter_id, other.reserved_id):
                    continue
                start = other.begin_time if other.exporter_id is None else other.effective_begin
                assert start is not None and other.expires_at is not None
                assert other.expires_at <= begin or end <= start, "a reservation was not kept"

    def _place(self, lease: Lease, exporter: str, exporter_id: str) -> tuple[Any, ...] | None:
        grant = self.world.may_have(lease, exporter)
        if grant is None or lease.begin_time is not None and lease.begin_time > self.now:
            return None
        return place(lease.reserved_id == exporter_id, lease.spot, grant, lease.sequence)

    def _blocked(self, lease: Lease, exporter_id: str, spot: bool, leases: list[Lease]) -> bool:
        """Whether a reservation of somebody else keeps the lease from beginning now."""
        end = lease.expires_at if lease.expires_at is not None else self.now + lease.duration
        if spot:
            end = self.now + 60
        ahead = [
            other.begin_time
            for other in leases
            if other is not lease
            and other.exporter_id is None
            and other.reserved_id == exporter_id
            and (spot or not other.spot)
            and other.begin_time is not None
            and other.begin_time < end
        ]
        return bool(ahead) and (lease.minimum is None or min(ahead) - self.now < lease.minimum)

    def _check_order(self, winner: Lease, exporter: str, leases: list[Lease]) -> None:
        assert winner.exporter_id is not None
        was = self.before.get(winner.name)
        reserved = was is not None and was.reserved_id == winner.exporter_id
        best = place(reserved, was is not None and was.spot, (winner.spot, -winner.priority), winner.sequence)
        for lease in leases:
            if lease.exporter_id is not None or winner.effective_begin != self.now:
                continue
            other = self._place(lease, exporter, winner.exporter_id)
            if other is None or self._blocked(lease, winner.exporter_id, other[1], leases):
                continue
            # With a minimum it depends on the winner's own reservation, which is gone now.
            assert best < other, f"{lease.name} was before {winner.name}"

    def _check_nothing_idle(self, leases: list[Lease], boards: dict[str, Exporter]) -> None:
        taken = {lease.exporter_id for lease in leases}
        for name, board in boards.items():
            usable = board.online and board.connected and board.registered and board.status in (0, 2)
            if board.id in taken or not usable:
                continue
            for lease in leases:
                if lease.exporter_id is not None or self._place(lease, name, board.id) is None:
                    continue
                stands = self._place(lease, name, board.id)
                assert stands is not None
                assert self._blocked(lease, board.id, stands[1], leases), f"{lease.name} waits while {name} is free"

    def end(self) -> None:
        """Everything that was begun comes to an end when no more happens, except the wait for what never comes."""
        for caller in self.exporters.values():
            self.bench.change(exporters.connected, caller)
            self.check()
        for name in list(self.world.rules):
            del self.world.rules[name]
            self.bench.change(delete_policy, "test", NAMESPACE, name)
            self.check()
        for _ in range(200):
            for caller in self.exporters.values():
                self.bench.status(caller, ExporterStatus.AVAILABLE)
                self.check()
            left = [lease for lease in self.active() if lease.conditions[-1]["reason"] != "NoMatch"]
            if not left:
                return
            self.deadline = min(b.deadline for b in self.benches if b.deadline is not None)
            self.now = max(self.now, self.deadline)
            for bench in self.benches:
                bench.change(lambda tx: None)
        raise AssertionError(f"leases that never end: {[lease.name for lease in left]}")


@pytest.fixture
def start(database_url: str) -> Iterator[Callable[[int], History]]:
    begun: list[History] = []

    def begin(seed: int) -> History:
        begun.append(History(seed, database_url))
        return begun[-1]

    yield begin
    for history in begun:
        history.close()


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens(seed: int, start: Callable[[int], History]) -> None:
    history = start(seed)
    try:
        for _ in range(STEPS):
            history.step()
            history.check()
        history.end()
    except AssertionError:
        print("\n".join(history.steps))
        raise
