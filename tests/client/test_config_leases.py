# SPDX-License-Identifier: Apache-2.0
"""A client configuration leases and asks, for blocking code and for code in an event loop alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from client_harness import Room, room
from controller_harness import LabFiles

from jumpstarter.common.exceptions import ArgumentError, LeaseError


@contextmanager
def other_loop(lab: LabFiles, tmp_path: Path, boards: int = 1) -> Iterator[tuple[Room, BlockingPortal]]:
    """A lab in the event loop of another thread: this one is free for blocking code."""
    with start_blocking_portal() as portal:
        with portal.wrap_async_context_manager(room(lab, tmp_path, boards=boards)) as found:
            yield found, portal


def test_blocking_code_leases_and_drives(lab: LabFiles, tmp_path: Path) -> None:
    with other_loop(lab, tmp_path) as (place, _):
        config = place.config("alice")
        with config.lease(selector="board=x", duration=timedelta(minutes=5)) as lease:
            assert lease.exporter_name == "e0" and lease.exporter_labels["n"] == "0"
            with lease.connect() as client:
                client.power.on()
                assert client.power.status() == "on"
                with client.echo.stream() as stream:
                    stream.send(b"hello")
                    assert stream.receive() == b"hello"
            assert lease.extend(600).duration > 590
            assert lease.lost is None
            with lease.serve_unix() as path:
                assert Path(path).is_socket()
            assert [found.name for found in config.list_leases()] == [lease.name]
        assert config.list_leases() == []
        assert config.list_leases(only_active=False)[0].reason == "Released"


def test_code_in_an_event_loop_leases_and_drives(lab: LabFiles, tmp_path: Path) -> None:
    async def body() -> None:
        async with room(lab, tmp_path) as place:
            config = place.config("alice")
            async with config.lease_async(exporter_name="e0") as lease:
                async with lease.connect_async() as client:
                    await client.power.call_async("on")
                    assert await client.power.call_async("status") == "on"
                assert (await config.get_exporter("e0")).name == "e0"
                await lease.release_async()

    asyncio.run(body())


def test_the_helpers_ask_the_controller(lab: LabFiles, tmp_path: Path) -> None:
    with other_loop(lab, tmp_path, boards=2) as (place, _):
        alice = place.config("alice")
        place.config("bob")
        assert [exporter.name for exporter in alice.list_exporters()] == ["e0", "e1"]
        assert [exporter.name for exporter in alice.list_exporters("n=1")] == ["e1"]
        made = alice.create_lease("board=x", timedelta(minutes=1), tags={"ci": "42"}, lease_id="mine")
        assert made.name == "mine" and made.duration == 60
        assert [lease.name for lease in alice.list_leases(tag_filter="ci=42")] == ["mine"]
        assert alice.list_leases(tag_filter="ci=43") == []
        assert alice.update_lease("mine", duration=120).duration == 120
        assert alice.update_lease("mine", client="bob").client == "bob"
        with pytest.raises(LeaseError) as refused:
            alice.delete_lease("mine")
        assert refused.value.code == "PERMISSION_DENIED"
        place.config("bob").delete_lease("mine")
        token, expiry = alice.rotate_token()
        assert token and token != alice.token and expiry.tzinfo is not None


def test_a_lease_from_the_environment_is_not_given_back(
    lab: LabFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with other_loop(lab, tmp_path) as (place, _):
        config = place.config("alice")
        made = config.create_lease("board=x", 60)
        monkeypatch.setenv("JMP_LEASE", made.name)
        with config.lease() as lease:
            assert lease.name == made.name
        assert [lease.name for lease in config.list_leases()] == [made.name]
        monkeypatch.delenv("JMP_LEASE")
        with pytest.raises(ArgumentError, match="selector"), config.lease():
            raise AssertionError("of what?")


@pytest.mark.parametrize("question", [lambda config: config.list_exporters(), lambda config: config.list_leases()])
def test_within_a_loop_they_are_coroutines(lab: LabFiles, tmp_path: Path, question: Callable[[Any], Any]) -> None:
    async def body() -> None:
        async with room(lab, tmp_path, boards=0) as place:
            coroutine = question(place.config("alice"))
            assert asyncio.iscoroutine(coroutine)
            assert await coroutine == []

    asyncio.run(body())
