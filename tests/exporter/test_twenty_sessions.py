# SPDX-License-Identifier: Apache-2.0
"""Many sessions at once, whose streams do not notice that the controller is killed and comes back."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from exporter_harness import POWER, Place, run, until
from router_harness import attached

from jumpstarter.client.aio import connect
from jumpstarter.client.controller import LeaseWish, connect_controller
from jumpstarter.client.lease import hold_lease
from jumpstarter.config.client import ClientConfigV1Alpha1

SESSIONS = 20
ECHO = "jumpstarter_driver_network.driver.EchoNetwork"


class Talk:
    """Bytes to a device and back, one after the other, over one stream. count: how many were right."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.count = 0
        self.task = asyncio.create_task(self._talk())

    async def _talk(self) -> None:
        async with self._session.node("echo").stream() as stream:
            while True:
                said = f"{self.count};".encode()
                await stream.send(said)
                heard = b""
                while len(heard) < len(said):
                    heard += await stream.receive()
                assert heard == said
                self.count += 1
                await asyncio.sleep(0.02)  # a pace, or the test would take a core of its own

    def check(self) -> None:
        """Raise what it ended with."""
        if self.task.done():
            self.task.result()

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def _all_go_on(talks: list[Talk], more: int) -> None:
    """Return when each has gone on by ``more`` exchanges."""
    goals = [talk.count + more for talk in talks]

    def done() -> bool:
        for talk in talks:
            talk.check()
        return all(talk.count >= goal for talk, goal in zip(talks, goals, strict=True))

    await until(done, "every session goes on")


def test_twenty_sessions_go_on_while_the_controller_is_killed_and_restarted(place: Place, tmp_path: Path) -> None:
    hooked = tmp_path / "hooks"
    boards = [f"board{number}" for number in range(SESSIONS)]

    async def body(controller: Any) -> None:
        async with AsyncExitStack() as stack:
            for board in boards:
                await stack.enter_async_context(place.serving(place.lab.folder / f"exporter-{board}.yaml"))
            config = ClientConfigV1Alpha1.from_file(place.lab.folder / "client-alice.yaml")
            client = await stack.enter_async_context(connect_controller(config))
            async with AsyncExitStack() as leases:

                async def lease(board: str) -> tuple[str, Talk]:
                    wish = LeaseWish(exporter_name=board, duration=600)
                    held = await leases.enter_async_context(hold_lease(client, wish, acquisition_timeout=60))
                    path = await leases.enter_async_context(held.serve_unix(str(tmp_path / f"{board}.sock")))
                    talk = Talk(await leases.enter_async_context(connect(path)))
                    leases.push_async_callback(talk.stop)
                    return path, talk

                # One after the other: contexts of an AsyncExitStack belong to one task.
                opened = [await lease(board) for board in boards]
                talks = [talk for _, talk in opened]
                await _all_go_on(talks, 5)

                controller.kill()
                await _all_go_on(talks, 20)
                await asyncio.to_thread(controller.start)
                await _all_go_on(talks, 20)

                # The leases are what they were: new connections are dialed, to the same sessions.
                for path, _ in opened:
                    async with connect(path) as again:
                        assert await again.node("power").call("status") == "on"
                for talk in talks:
                    talk.check()
            listed = None
            while listed is None or any(exporter.lease for exporter in listed):
                listed = await client.list_exporters()
            assert all(exporter.online for exporter in listed)

    for board in boards:
        script = f"j power on && echo {board} >>{hooked}"
        place.exporter(
            board, {"power": {"type": POWER}, "echo": {"type": ECHO}}, hooks={"beforeLease": {"script": script}}
        )
    place.lab.client("alice")
    with place.controller() as controller, attached(place.lab, "apart"):
        # Through a router apart: the one inside would die with the controller.
        run(lambda: body(controller), 240)
        audit = place.lab.audit(10_000)
    # Once each: no session was begun anew.
    assert sorted(hooked.read_text().split()) == sorted(boards)
    for action in ("lease created", "lease acquired", "lease ended: Released"):
        assert sum(entry["action"] == action for entry in audit) == SESSIONS, action
