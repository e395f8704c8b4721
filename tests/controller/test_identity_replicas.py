# SPDX-License-Identifier: Apache-2.0
"""What one controller takes away, the others of the lab do not grant any more."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest
from admin_peers import AdminPeer
from controller_harness import LabFiles
from peers import HOME, ExporterPeer, Peer, controller, refusal, refused_soon

from jumpstarter_controller.identity import cache
from jumpstarter_protocol.jumpstarter.admin.v1 import admin_pb2


@pytest.fixture
def lab(tmp_path: Path, postgres_url: str) -> LabFiles:
    return LabFiles.make(tmp_path / "lab", database=postgres_url)


def test_a_revocation_on_one_controller_holds_on_the_other(lab: LabFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_MAX_AGE", 3600.0)  # only that it is told of the revocation can help

    async def body() -> None:
        one, two = dataclasses.replace(lab), dataclasses.replace(lab)
        async with controller(one), controller(two):
            root = AdminPeer(one, one.client("root", "--admin"))
            other = AdminPeer(two, two.client("other", "--admin"))
            alice = Peer(two, two.client("alice"), "Client")
            board = ExporterPeer(two, two.exporter("board"))
            await board.start()
            await alice.ask("ListLeases", parent=HOME)  # it is remembered there now
            await other.do("ListClients", parent=HOME)
            await root.do("RevokeTokens", name=f"{HOME}/clients/alice")
            await root.do("RevokeTokens", name=f"{HOME}/exporters/board")
            await root.do("UpdateClient", client=admin_pb2.Client(name=f"{HOME}/clients/other"))
            revoked = ("UNAUTHENTICATED", "token has been revoked")
            assert await refused_soon(lambda: alice.ask("ListLeases", parent=HOME)) == revoked
            assert (await refused_soon(lambda: other.do("ListClients", parent=HOME)))[0] == "PERMISSION_DENIED"
            async with asyncio.timeout(60):
                watch, board._watch = board._watch, None
                assert watch is not None
                assert await refusal(watch) == revoked
            for peer in (root, other, alice, board):
                await peer.close()

    asyncio.run(body())
