# SPDX-License-Identifier: Apache-2.0
"""Simulated exporters and clients of a lab: raw stubs, so that what is measured is the controller.

lab_peers.py exporters FILE          a worker that holds exporters; FILE: see `Lab`
lab_peers.py client FILE             a worker that leases, dials and moves data
lab_peers.py far FILE                a worker that is the far end of the bare relay
lab_peers.py relay                   a bare grpc.aio relay, the limit of a tunnel; prints its addresses
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from harness import MIB, worker_main

from jumpstarter.common.enums import ExporterStatus
from jumpstarter.common.grpc import channel_options
from jumpstarter.streams.frames import Frame, encode_frame
from jumpstarter_protocol import client_pb2_grpc, jumpstarter_pb2_grpc
from jumpstarter_protocol.jumpstarter.client.v1 import client_pb2
from jumpstarter_protocol.jumpstarter.lab.v1 import controller_pb2, controller_pb2_grpc
from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2

FRAMES = "/jumpstarter.v1.RouterService/Stream"
NAMESPACE = "default"
#: What an exporter of a middling board says of itself.
_DRIVERS = ("", "power", "serial", "storage", "video", "tcp", "ssh")


@dataclass(frozen=True)
class Lab:
    """What a worker must know. exporters, clients: names and tokens, in order."""

    endpoint: str
    ca: str
    exporters: list[tuple[str, str]]
    clients: list[tuple[str, str]]

    @classmethod
    def load(cls, path: str) -> Lab:
        """From the file that the orchestrator wrote."""
        return cls(**json.loads(Path(path).read_text()))

    def channel(self, endpoint: str, token: str, **options: Any) -> grpc.aio.Channel:
        """A connection of its own, as every peer of a lab has."""
        credentials = grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(self.ca.encode()), grpc.access_token_call_credentials(token)
        )
        own = channel_options({"grpc.use_local_subchannel_pool": 1, **options})
        return grpc.aio.secure_channel(endpoint, credentials, options=own)


def _metadata(kind: str, name: str) -> list[tuple[str, str]]:
    return [("jumpstarter-kind", kind), ("jumpstarter-namespace", NAMESPACE), ("jumpstarter-name", name)]


class _Loop:
    """An event loop in a thread, for operations that come one by one."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def __call__(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()


# Exporters ----------------------------------------------------------------------------------------------------------


class Exporter:
    """Registers, holds its Status stream, answers every dial with a tunnel that counts, or sends, what it is asked."""

    def __init__(self, lab: Lab, name: str, token: str) -> None:
        self.lab, self.name = lab, name
        self.metadata = _metadata("Exporter", name)
        self.channel = lab.channel(lab.endpoint, token)
        self.stub = jumpstarter_pb2_grpc.ControllerServiceStub(self.channel)
        self.tasks: set[asyncio.Task[None]] = set()
        self.lease: asyncio.Task[None] | None = None

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def start(self) -> None:
        """Register; returns when the Status stream has said its first word."""
        reports = [
            jumpstarter_pb2.DriverInstanceReport(
                uuid=f"00000000-0000-4000-8000-{number:012}",
                parent_uuid=None if not number else f"00000000-0000-4000-8000-{0:012}",
                labels={
                    "jumpstarter.dev/name": word,
                    "jumpstarter.dev/client": f"jumpstarter_driver_{word or 'composite'}.client.Client",
                },
            )
            for number, word in enumerate(_DRIVERS)
        ]
        labels = {"jumpstarter.dev/name": self.name}
        await self.stub.Register(
            jumpstarter_pb2.RegisterRequest(labels=labels, reports=reports), metadata=self.metadata
        )
        await self.report(ExporterStatus.AVAILABLE)
        told = asyncio.Event()
        self.spawn(self._watch(told))
        await told.wait()

    async def report(self, status: ExporterStatus) -> None:
        request = jumpstarter_pb2.ReportStatusRequest(status=status.value)
        await self.stub.ReportStatus(request, metadata=self.metadata)

    async def _watch(self, told: asyncio.Event) -> None:
        async for message in self.stub.Status(jumpstarter_pb2.StatusRequest(), metadata=self.metadata):
            told.set()
            if message.leased:
                self.lease = self.spawn(self._listen(message.lease_name))
                await self.report(ExporterStatus.LEASE_READY)
            elif self.lease is not None:
                self.lease.cancel()
                self.lease = None
                await self.report(ExporterStatus.AVAILABLE)

    async def _listen(self, lease: str) -> None:
        try:
            request = jumpstarter_pb2.ListenRequest(lease_name=lease)
            async for dial in self.stub.Listen(request, metadata=self.metadata):
                self.spawn(self._serve(dial.router_endpoint, dial.router_token))
        except grpc.aio.AioRpcError:
            pass  # the lease has ended

    async def _serve(self, endpoint: str, token: str) -> None:
        async with self.lab.channel(endpoint, token) as channel:
            await device(channel.stream_stream(FRAMES)())

    async def stop(self) -> None:
        for task in list(self.tasks):
            task.cancel()
        await self.channel.close()


async def device(call: Any) -> None:
    """The far end of a tunnel: answers a greeting, then does what the next message says, until the near end is done."""
    try:
        await call.read()
        await call.write(b"here")
        word, _, count = (await call.read()).decode().partition(" ")
        if word == "sink":
            for _ in range(int(count)):
                await call.read()
            await call.write(b"done")
        elif word == "source":
            message = encode_frame(Frame(bytes(MIB)))
            for _ in range(int(count)):
                await call.write(message)
        await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            pass
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass  # the tunnel was cut; the near end tells


def exporters(path: str) -> None:
    """The worker."""
    lab, run, running = Lab.load(path), _Loop(), dict[str, Exporter]()

    async def up(count: int) -> dict[str, Any]:
        limit = asyncio.Semaphore(16)
        started = time.perf_counter()

        async def one(name: str, token: str) -> None:
            async with limit:
                exporter = running[name] = Exporter(lab, name, token)
                await exporter.start()

        new = [pair for pair in lab.exporters[:count] if pair[0] not in running]
        await asyncio.gather(*(one(*pair) for pair in new))
        return {"online": len(running), "seconds": time.perf_counter() - started}

    async def down() -> dict[str, Any]:
        await asyncio.gather(*(exporter.stop() for exporter in running.values()))
        running.clear()
        return {}

    worker_main({"up": lambda count: run(up(count)), "down": lambda: run(down())})


# Clients ------------------------------------------------------------------------------------------------------------


class Client:
    """One user."""

    def __init__(self, lab: Lab, name: str, token: str) -> None:
        self.lab = lab
        self.metadata = _metadata("Client", name)
        self.channel = lab.channel(lab.endpoint, token)
        self.stub = client_pb2_grpc.ClientServiceStub(self.channel)
        self.controller = jumpstarter_pb2_grpc.ControllerServiceStub(self.channel)
        self.lab_controller = controller_pb2_grpc.LabControllerServiceStub(self.channel)

    async def lease(self, selector: str) -> Any:
        """Ask for an exporter; returns the lease when it has one."""
        wish = client_pb2.Lease(selector=selector, duration=Duration(seconds=600))
        request = client_pb2.CreateLeaseRequest(parent=f"namespaces/{NAMESPACE}", lease=wish)
        lease = await self.stub.CreateLease(request, metadata=self.metadata)
        if not lease.HasField("effective_begin_time"):
            watch = self.lab_controller.WatchLease(
                controller_pb2.WatchLeaseRequest(name=lease.name), metadata=self.metadata
            )
            async for state in watch:
                lease = state.lease
                if state.ended:
                    raise RuntimeError(f"lease {lease.name} has ended: {state.message}")
                if lease.HasField("effective_begin_time"):
                    watch.cancel()
                    break
        return lease

    async def release(self, lease: Any) -> None:
        await self.stub.DeleteLease(client_pb2.DeleteLeaseRequest(name=lease.name), metadata=self.metadata)

    async def until_free(self, lease: Any) -> None:
        """Return when the exporter of a lease that has ended can be leased again."""
        name = f"namespaces/{NAMESPACE}/exporters/{lease.exporter.rpartition('/')[2]}"
        while True:
            found = await self.stub.GetExporter(client_pb2.GetExporterRequest(name=name), metadata=self.metadata)
            if found.status == ExporterStatus.AVAILABLE.value:
                return
            await asyncio.sleep(0.005)

    async def dial(self, lease: Any) -> Any:
        request = jumpstarter_pb2.DialRequest(lease_name=lease.name.rpartition("/")[2])
        return await self.controller.Dial(request, metadata=self.metadata)


def _spread(samples: list[float]) -> dict[str, float]:
    samples.sort()
    return {"p50": samples[len(samples) // 2], "p99": samples[min(len(samples) - 1, int(len(samples) * 0.99))]}


async def _move(call: Any, messages: int, down: bool) -> float:
    """MB/s of ``messages`` MiB through a tunnel, from when both ends are there."""
    message = encode_frame(Frame(bytes(MIB)))
    await call.write(b"hello")
    await call.read()
    started = time.perf_counter()
    if down:
        await call.write(f"source {messages}".encode())
        for _ in range(messages):
            await call.read()
    else:
        await call.write(f"sink {messages}".encode())
        for _ in range(messages):
            await call.write(message)
        if await call.read() != b"done":
            raise RuntimeError("the far end has not got everything")
    seconds = time.perf_counter() - started
    await call.done_writing()
    while await call.read() is not grpc.aio.EOF:
        pass
    return messages * MIB / seconds / 1e6


def client(path: str) -> None:
    """The worker."""
    lab, run = Lab.load(path), _Loop()

    async def connect() -> list[Client]:
        return [Client(lab, *pair) for pair in lab.clients]

    people: list[Client] = run(connect())

    async def acquire(n: int, selector: str) -> dict[str, float]:
        samples = []
        for number in range(n + 3):
            started = time.perf_counter()
            lease = await people[0].lease(selector)
            if number >= 3:
                samples.append(time.perf_counter() - started)
            await people[0].release(lease)
            await people[0].until_free(lease)
        return _spread(samples)

    async def rate(seconds: float, selector: str, holders: int) -> dict[str, float]:
        end, done = time.perf_counter() + seconds, 0

        async def one(person: Client) -> None:
            nonlocal done
            while time.perf_counter() < end:
                await person.release(await person.lease(selector))
                done += 1

        started = time.perf_counter()
        await asyncio.gather(*(one(person) for person in people[:holders]))
        return {"per_s": done / (time.perf_counter() - started)}

    async def dial(n: int, selector: str) -> dict[str, float]:
        """From Dial to the far end's first byte, with a connection of its own, as real clients do."""
        lease = await people[0].lease(selector)
        samples = []
        for number in range(n + 3):
            started = time.perf_counter()
            told = await people[0].dial(lease)
            async with lab.channel(told.router_endpoint, told.router_token) as channel:
                call = channel.stream_stream(FRAMES)()
                await call.write(b"hello")
                await call.read()
                if number >= 3:
                    samples.append(time.perf_counter() - started)
                await call.write(b"bye")  # an end of data would not get through before both ends are done
                await call.done_writing()
                while await call.read() is not grpc.aio.EOF:
                    pass
        await people[0].release(lease)
        await people[0].until_free(lease)
        return _spread(samples)

    async def tunnel(messages: int, down: bool, selector: str) -> dict[str, float]:
        lease = await people[0].lease(selector)
        told = await people[0].dial(lease)
        async with lab.channel(told.router_endpoint, told.router_token) as channel:
            speed = await _move(channel.stream_stream(FRAMES)(), messages, down)
        await people[0].release(lease)
        await people[0].until_free(lease)
        return {"mb_s": speed}

    async def bare(messages: int, down: bool, address: str, secure: bool) -> dict[str, float]:
        """The same through the bare relay."""
        credentials = grpc.ssl_channel_credentials(lab.ca.encode())
        options = [("grpc.use_local_subchannel_pool", 1)]

        def open_channel() -> grpc.aio.Channel:
            if secure:
                return grpc.aio.secure_channel(address, credentials, options=options)
            return grpc.aio.insecure_channel(address, options=options)

        async with open_channel() as channel:
            return {"mb_s": await _move(channel.stream_stream("/bare/relay")(), messages, down)}

    worker_main(
        {
            name: lambda work=work, **arguments: run(work(**arguments))
            for name, work in {"acquire": acquire, "rate": rate, "dial": dial, "tunnel": tunnel, "bare": bare}.items()
        }
    )


# The limit ----------------------------------------------------------------------------------------------------------


async def relay(certificate: str, key: str) -> None:
    """A bare grpc.aio relay: two callers of /bare/relay are joined, message by message, and nothing else."""
    waiting: list[tuple[Any, asyncio.Event]] = []

    async def carry(source: Any, sink: Any) -> None:
        while (message := await source.read()) is not grpc.aio.EOF:
            await sink.write(message)

    async def join(_: Any, context: Any) -> None:
        if not waiting:
            done = asyncio.Event()
            waiting.append((context, done))
            await done.wait()
            return
        other, done = waiting.pop()
        await asyncio.gather(carry(other, context), carry(context, other))
        done.set()

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler = grpc.method_handlers_generic_handler("bare", {"relay": grpc.stream_stream_rpc_method_handler(join)})
    server.add_generic_rpc_handlers((handler,))
    secure = grpc.ssl_server_credentials([(Path(key).read_bytes(), Path(certificate).read_bytes())])
    ready = {
        "plain": f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}",
        "secure": f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', secure)}",
    }
    await server.start()
    print(f"READY {json.dumps(ready)}", flush=True)
    await asyncio.to_thread(sys.stdin.read)


def far_end(path: str) -> None:
    """A worker that is the far end of the bare relay."""
    lab, run = Lab.load(path), _Loop()

    async def serve(address: str, secure: bool) -> dict[str, Any]:
        options = [("grpc.use_local_subchannel_pool", 1)]
        if secure:
            credentials = grpc.ssl_channel_credentials(lab.ca.encode())
            channel = grpc.aio.secure_channel(address, credentials, options=options)
        else:
            channel = grpc.aio.insecure_channel(address, options=options)

        async def work() -> None:
            async with channel:
                await device(channel.stream_stream("/bare/relay")())

        tasks.append(asyncio.create_task(work()))
        return {}

    tasks: list[asyncio.Task[None]] = []
    worker_main({"serve": lambda **arguments: run(serve(**arguments))})


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command == "exporters":
        exporters(*rest)
    elif command == "client":
        client(*rest)
    elif command == "relay":
        asyncio.run(relay(*rest))
    elif command == "far":
        far_end(*rest)
    else:
        raise SystemExit(__doc__)
