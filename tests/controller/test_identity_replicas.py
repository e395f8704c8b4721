# SPDX-License-Identifier: Apache-2.0
"""What one controller takes away, the others of the lab do not grant any more."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import grpc
import pytest
from admin_peers import AdminPeer
from controller_harness import LabFiles
from peers import HOME, ExporterPeer, Peer, controller, refusal

from jumpstarter_protocol.jumpstarter.admin.v1 import admin_pb2


@pytest.fixture
def lab(tmp_path: Path, postgres_url: str) -> LabFiles:
    return LabFiles.make(tmp_path / "lab", database=postgres_url)


def test_a_revocation_on_one_controller_holds_on_the_other(lab: LabFiles) -> None:
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
            # Well before the ten seconds after which it would be looked up again anyway.
            async with asyncio.timeout(5):
                assert await _refused(alice.ask, "ListLeases") == ("UNAUTHENTICATED", "token has been revoked")
                assert (await _refused(other.do, "ListClients"))[0] == "PERMISSION_DENIED"
                watch, board._watch = board._watch, None
                assert watch is not None
                assert await refusal(watch) == ("UNAUTHENTICATED", "token has been revoked")
            for peer in (root, other, alice, board):
                await peer.close()

    asyncio.run(body())


async def _refused(ask: object, method: str) -> tuple[str, str]:
    """What the call is refused with, when it is."""
    while True:
        try:
            await ask(method, parent=HOME)  # type: ignore[operator]
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""
