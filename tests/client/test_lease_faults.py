# SPDX-License-Identifier: Apache-2.0
"""A hold outlives a controller that is killed; a lease does not outlive a holder that is."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from client_harness import until
from test_hold_lease import run

from jumpstarter.client.aio import connect
from jumpstarter.client.controller import ControllerClient, LeaseWish, connect_controller
from jumpstarter.client.lease import hold_lease
from jumpstarter.common.enums import ExporterStatus
from jumpstarter.common.exceptions import ConnectionError
from jumpstarter.config.client import ClientConfigV1Alpha1

sys.path.insert(0, str(Path(__file__).parents[1] / "exporter"))

from exporter_harness import Place

#: A holder in a process of its own; says "waiting" and "held", and goes on until it is ended.
HOLDER = """
import asyncio, sys
from jumpstarter.client.controller import LeaseWish, connect_controller
from jumpstarter.client.lease import hold_lease
from jumpstarter.config.client import ClientConfigV1Alpha1

async def main():
    async with connect_controller(ClientConfigV1Alpha1.from_file(sys.argv[1])) as controller:
        wish = LeaseWish(selector="board=x", duration=600, heartbeat=4)
        waiting = lambda state: print("waiting", flush=True) if state.lease.state == "pending" else None
        async with hold_lease(controller, wish, on_state=waiting) as held:
            print("held", held.name, flush=True)
            await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in ("run", "state"):
        (tmp_path / name).mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return Place.make(tmp_path)


def config_of(place: Place, name: str) -> Path:
    path = place.lab.folder / f"client-{name}.yaml"
    return path if path.exists() else place.lab.client(name)


@asynccontextmanager
async def client(place: Place, name: str = "alice") -> AsyncIterator[ControllerClient]:
    async with connect_controller(ClientConfigV1Alpha1.from_file(config_of(place, name))) as controller:
        yield controller


async def available(controller: ControllerClient) -> None:
    async with asyncio.timeout(60):
        while (await controller.get_exporter("board")).status is not ExporterStatus.AVAILABLE:
            await asyncio.sleep(0.05)


@contextmanager
def holder(place: Place, name: str) -> Iterator[subprocess.Popen[str]]:
    """A holder, killed at the end."""
    argv = [sys.executable, "-c", HOLDER, str(config_of(place, name))]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return await asyncio.to_thread(process.stdout.readline)


def test_a_hold_outlives_a_controller_that_is_killed(place: Place, tmp_path: Path) -> None:
    async def body() -> None:
        with place.controller() as process:
            async with place.serving(place.exporter()), client(place) as alice:
                await available(alice)
                wish = LeaseWish(selector="board=x", duration=600, heartbeat=5)
                async with hold_lease(alice, wish) as held, held.serve_unix(tmp_path / "s") as path:
                    async with connect(path) as session:
                        await session.node("power").call("on")
                    process.kill(signal.SIGKILL)
                    # As long as the heartbeat, and longer: what counts is the time that the controller is there.
                    await asyncio.sleep(6)
                    process.start()
                    async with connect(path) as session:
                        assert await session.node("power").call("status") == "on"
                    await until(lambda: held.lost.done() or held.state.lease.state == "ready")
                    assert not held.lost.done()
                    assert (await alice.get_lease(held.name)).state == "ready"
                assert (await alice.get_lease(held.name)).reason == "Released"

    run(body)


def test_a_loss_during_an_outage_is_noticed_afterwards(place: Place) -> None:
    async def body() -> None:
        with place.controller() as process:
            async with place.serving(place.exporter()), client(place) as alice:
                await available(alice)
                async with hold_lease(alice, LeaseWish(selector="board=x", duration=600)) as held:
                    await held.extend(5)
                    process.kill(signal.SIGKILL)
                    await asyncio.sleep(5.5)
                    assert not held.lost.done()  # nobody can know
                    process.start()
                    async with asyncio.timeout(60):
                        assert "expired" in await asyncio.shield(held.lost)

    run(body)


def test_a_wait_outlives_a_controller_that_is_killed(place: Place) -> None:
    async def body() -> None:
        with place.controller() as process:
            async with place.serving(place.exporter()), client(place) as alice, client(place, "bob") as bob:
                await available(alice)
                got: list[str] = []

                async def wait() -> None:
                    async with hold_lease(bob, LeaseWish(selector="board=x", duration=600)) as held:
                        got.append(held.info.exporter or "")

                async with hold_lease(alice, LeaseWish(selector="board=x", duration=600)):
                    waiting = asyncio.create_task(wait())
                    async with asyncio.timeout(60):
                        while len(await alice.list_leases()) < 2:
                            await asyncio.sleep(0.05)
                    process.kill(signal.SIGKILL)
                    process.start()
                async with asyncio.timeout(60):
                    await waiting
                assert got == ["board"]

    run(body)


def test_the_leases_of_a_killed_holder_end(place: Place) -> None:
    """While it waits and while it holds."""

    async def body() -> None:
        with place.controller():
            async with place.serving(place.exporter()), client(place, "watcher") as watcher:
                await available(watcher)
                with holder(place, "alice") as first, holder(place, "bob") as second:
                    words = [(await line(process)).split() for process in (first, second)]
                    holding, waiting = (first, second) if words[0][0] == "held" else (second, first)
                    assert sorted(word[0] for word in words) == ["held", "waiting"]
                    # The one that waits first: it shall not get what the other one leaves.
                    waiting.kill()
                    holding.kill()
                    async with asyncio.timeout(60):
                        while await watcher.list_leases():
                            await asyncio.sleep(0.1)
                reasons = {lease.reason for lease in await watcher.list_leases(only_active=False)}
                assert reasons == {"HeartbeatLost"}

    run(body)


def test_a_controller_that_is_not_there(place: Place) -> None:
    async def body() -> None:
        with pytest.raises(ConnectionError, match=f"controller {place.lab.endpoint}: it does not answer"):
            async with client(place):
                raise AssertionError("it is not there")

    run(body)


def test_giving_back_to_a_controller_that_is_away_takes_its_time_and_says_so(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("jumpstarter.client.lease._GIVE_BACK_SECONDS", 3.0)

    async def body() -> None:
        with place.controller() as process:
            async with place.serving(place.exporter()), client(place) as alice:
                await available(alice)
                async with hold_lease(alice, LeaseWish(selector="board=x", duration=600)) as held:
                    process.kill(signal.SIGKILL)
                assert f"lease {held.name} could not be given back and ends by itself: controller" in caplog.text

    run(body)
