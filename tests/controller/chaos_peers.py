# SPDX-License-Identifier: Apache-2.0
"""Exporters and clients of the chaos test, several to a process that may be killed at any moment.

python chaos_peers.py exporters|clients ENDPOINT CA SEED CONFIG... : they go on until they are ended, whatever the
controller does meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

import grpc
from controller_harness import LabFiles
from google.protobuf.duration_pb2 import Duration
from peers import HOME, ExporterPeer, Peer

from jumpstarter.common.enums import ExporterStatus
from jumpstarter_protocol.jumpstarter.client.v1 import client_pb2
from jumpstarter_protocol.jumpstarter.lab.v1 import controller_pb2, controller_pb2_grpc
from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2

HEARTBEAT = 4
#: What a peer sees of a controller that is killed, restarting, or has lost its place in between.
_PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,  # and of one that has to share its machine with too many
)


async def exporter(lab: LabFiles, config: Path) -> None:
    """An exporter that says that it is ready when it is leased, and available when it is not."""
    peer = ExporterPeer(lab, config)
    while True:
        try:
            reports = [jumpstarter_pb2.DriverInstanceReport(uuid="root")]
            await peer.call("Register", labels={}, reports=reports)
            async for told in peer.controller.Status(jumpstarter_pb2.StatusRequest(), metadata=peer.metadata):
                await peer.status(ExporterStatus.LEASE_READY if told.leased else ExporterStatus.AVAILABLE)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _PASSING:
                raise
        await asyncio.sleep(0.05)


async def client(lab: LabFiles, config: Path, chance: random.Random) -> None:
    """A client that leases, holds for a moment, and gives back, or forgets to."""
    peer = Peer(lab, config, "Client")
    stub = controller_pb2_grpc.LabControllerServiceStub(peer.channel)
    while True:
        try:
            wish = client_pb2.Lease(selector="board=x", duration=Duration(seconds=60))
            request = controller_pb2.CreateLeaseRequest(parent=HOME, lease=wish, heartbeat=Duration(seconds=HEARTBEAT))
            lease = await stub.CreateLease(request, metadata=peer.metadata, timeout=60)
            beating = asyncio.create_task(_beat(peer, stub, lease.name))
            try:
                await _use(peer, stub, lease.name, chance)
            finally:
                beating.cancel()
                await asyncio.gather(beating, return_exceptions=True)
        except grpc.aio.AioRpcError as error:
            # A lease that ended meanwhile (its heartbeat was late while the controller was away) is no surprise.
            if error.code() not in (*_PASSING, grpc.StatusCode.FAILED_PRECONDITION):
                raise
            await asyncio.sleep(0.1)


async def _beat(peer: Peer, stub: controller_pb2_grpc.LabControllerServiceStub, name: str) -> None:
    while True:
        try:
            await stub.Heartbeat(controller_pb2.HeartbeatRequest(name=name), metadata=peer.metadata, timeout=5)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _PASSING:
                return
        await asyncio.sleep(HEARTBEAT / 4)


async def _use(
    peer: Peer, stub: controller_pb2_grpc.LabControllerServiceStub, name: str, chance: random.Random
) -> None:
    request = controller_pb2.WatchLeaseRequest(name=name)
    async for state in stub.WatchLease(request, metadata=peer.metadata):
        if state.ended:
            return
        if state.lease.exporter:
            break
    await asyncio.sleep(chance.uniform(0, 0.3))
    if chance.random() < 0.9:
        await peer.ask("DeleteLease", name=name)


async def _main(kind: str, endpoint: str, ca: str, seed: int, configs: list[str]) -> None:
    lab, chance = LabFiles(Path(ca).parent, endpoint), random.Random(seed)
    async with asyncio.TaskGroup() as group:
        for config in configs:
            group.create_task(exporter(lab, Path(config)) if kind == "exporters" else client(lab, Path(config), chance))


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5:]))
