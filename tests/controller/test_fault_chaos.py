# SPDX-License-Identifier: Apache-2.0
"""Two hundred leases on twenty exporters by fifty clients, while controller, exporters and clients are killed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from controller_harness import LabFiles, reserved_port

PEERS = Path(__file__).parent / "chaos_peers.py"
EXPORTERS, CLIENTS, LEASES = 20, 50, 200
#: Without any progress. How fast it goes is the machine's matter.
_SECONDS = 120.0


class Progress:
    """Fails when nothing moves any more."""

    def __init__(self) -> None:
        self._seen: object = None
        self._deadline = 0.0

    def look(self, state: object) -> None:
        """``state`` is how things stand."""
        if state != self._seen:
            self._seen, self._deadline = state, time.monotonic() + _SECONDS
        assert time.monotonic() < self._deadline, f"nothing happens any more: {state}"


class Crowd:
    """Processes that are killed and started again."""

    def __init__(self, lab: LabFiles, kind: str, configs: list[Path], each: int, seed: int) -> None:
        self._lab, self._kind, self._seed = lab, kind, seed
        self._shares = [configs[at : at + each] for at in range(0, len(configs), each)]
        self._processes = [self._start(share) for share in self._shares]

    def _start(self, share: list[Path]) -> subprocess.Popen[bytes]:
        self._seed += 1
        argv = [self._kind, self._lab.endpoint, self._lab.folder / "ca.crt", self._seed, *share]
        with (self._lab.folder / f"{self._kind}.log").open("ab") as log:
            return subprocess.Popen([sys.executable, PEERS, *map(str, argv)], stdout=log, stderr=log)

    def kill_one(self, chance: random.Random) -> None:
        """SIGKILL, and another one in its place."""
        number = chance.randrange(len(self._processes))
        self._end(self._processes[number])
        self._processes[number] = self._start(self._shares[number])

    def kill_all(self) -> None:
        """For good."""
        for process in self._processes:
            self._end(process)

    def check(self) -> None:
        """None may end by itself: what they do not expect they die of."""
        for process in self._processes:
            assert process.poll() is None, (self._lab.folder / f"{self._kind}.log").read_text()[-3000:]

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()


@contextmanager
def _crowds(lab: LabFiles) -> Iterator[tuple[Crowd, Crowd]]:
    boards = [lab.exporter(f"e{number}", "-l", "board=x") for number in range(EXPORTERS)]
    people = [lab.client(f"c{number}") for number in range(CLIENTS)]
    exporters = Crowd(lab, "exporters", boards, 5, 100)
    try:
        clients = Crowd(lab, "clients", people, 10, 200)
        try:
            yield exporters, clients
        finally:
            clients.kill_all()
    finally:
        exporters.kill_all()


def _created(audit: list[dict[str, Any]]) -> int:
    return sum(entry["action"] == "lease created" for entry in audit)


@pytest.mark.timeout(1500)
def test_every_lease_ends_no_exporter_is_stuck_and_none_is_booked_twice(lab: LabFiles) -> None:
    settings = yaml.safe_load(lab.config.read_text())
    # The same port after each restart; lost exporters are noticed soon.
    settings |= {"listen": f"127.0.0.1:{reserved_port()}", "leases": {"offlineAfter": "5s"}}
    lab.config.write_text(yaml.safe_dump(settings))
    chance = random.Random(3)
    progress = Progress()
    lab.endpoint = settings["listen"]
    with _crowds(lab) as (exporters, clients):
        for victim in ("controller", "controller", None):
            with lab.serving(killed=victim is not None) as controller:
                start = _created(lab.audit(100_000))
                goal = LEASES if victim is None else start + LEASES // 4
                while (done := _created(lab.audit(100_000))) < goal:
                    clients.check()
                    exporters.check()
                    # One death for about ten leases.
                    next_death = done + 10
                    while (made := _created(lab.audit(100_000))) < min(next_death, goal):
                        progress.look(f"{made} of {goal} leases")
                        time.sleep(0.1)
                    (clients if chance.random() < 0.7 else exporters).kill_one(chance)
                if victim is not None:
                    controller.send_signal(signal.SIGKILL)
                    controller.wait()
                    continue
                clients.kill_all()
                _wait_until_all_is_free(lab, progress)
    _check(lab.audit(100_000))


def _wait_until_all_is_free(lab: LabFiles, progress: Progress) -> None:
    """Nobody is left who would give anything back: heartbeats end what is held, and exporters become available."""
    while True:
        audit = lab.audit(100_000)
        ended = sum(entry["action"].startswith("lease ended") for entry in audit)
        last = {entry["exporter"]: entry["status"] for entry in audit if entry["action"] == "exporter status"}
        if ended == _created(audit) and list(last.values()) == ["AVAILABLE"] * EXPORTERS:
            return
        progress.look((ended, _created(audit), last))
        time.sleep(0.2)


def _check(audit: list[dict[str, Any]]) -> None:
    """The audit log tells the whole story: each lease begins once and ends once, an exporter has one at a time."""
    story: dict[str, list[str]] = defaultdict(list)
    holder: dict[str, str] = {}
    for entry in audit:
        if entry["action"] in ("lease created", "lease acquired") or entry["action"].startswith("lease ended"):
            story[entry["lease"]].append(entry["action"].partition(":")[0])
        if entry["action"] == "lease acquired":
            assert entry["exporter"] not in holder, f"{entry} while {holder[entry['exporter']]} holds it"
            holder[entry["exporter"]] = entry["lease"]
        elif entry["action"].startswith("lease ended") and entry.get("exporter"):
            assert holder.pop(entry["exporter"]) == entry["lease"]
    assert not holder
    assert len(story) >= LEASES
    told = {tuple(actions) for actions in story.values()}
    assert told <= {("lease created", "lease acquired", "lease ended"), ("lease created", "lease ended")}
    # Kills and waiting leave some without an exporter; enough had one.
    assert sum(len(actions) == 3 for actions in story.values()) > LEASES // 5
