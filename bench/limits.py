# SPDX-License-Identifier: Apache-2.0
"""The raw limits: plain grpc.aio programs that do what a row does and nothing else.

limits.py serve HOST:PORT            unary, items, file sink, echo, relay target is --dut
limits.py client HOST:PORT           worker with the operations of a row
limits.py dut                        a TCP device: sink, source, echo; prints its address
limits.py pty                        a serial device: a pty that echoes; prints its path
limits.py importgrpc                 imports grpc.aio and waits: floor of an exporter's start and memory
"""

from __future__ import annotations

import asyncio
import os
import pty
import socket
import sys
import threading
import time
import tty
from typing import Any

from harness import MIB, worker_main

_PING = b'{"method": "ping", "args": [], "uuid": "0b8a2c1e-36a8-4b1c-a6a4-5c5d3f8fbd10", "padding": "xxxxxxxx"}'


def identity(data: bytes) -> bytes:
    """gRPC codec of raw bytes."""
    return data


async def serve(address: str, dut: str, tty_path: str) -> None:
    """The exporter's side of every limit."""
    import grpc

    async def ping(request: bytes, context: Any) -> bytes:
        return request

    async def items(request: bytes, context: Any) -> Any:
        for _ in range(int(request)):
            yield _PING[:40]

    async def sink(iterator: Any, context: Any) -> bytes:
        path = (await context.read()).decode()
        loop = asyncio.get_running_loop()
        with open(path, "wb", buffering=0) as file:
            while (data := await context.read()) is not grpc.aio.EOF:
                await loop.run_in_executor(None, file.write, data)
            os.fsync(file.fileno())
        return b"ok"

    async def relay(iterator: Any, context: Any) -> None:
        reader, writer = await asyncio.open_connection(*dut.rsplit(":", 1), limit=4 * MIB)

        async def up() -> None:
            while (data := await context.read()) is not grpc.aio.EOF:
                writer.write(data)
                await writer.drain()
            writer.write_eof()

        task = asyncio.ensure_future(up())
        while data := await reader.read(MIB):
            await context.write(data)
        await task
        writer.close()

    async def console(iterator: Any, context: Any) -> None:
        fd = os.open(tty_path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        loop.add_reader(fd, lambda: queue.put_nowait(os.read(fd, 65536)))

        async def down() -> None:
            while True:
                await context.write(await queue.get())

        task = asyncio.ensure_future(down())
        try:
            while (data := await context.read()) is not grpc.aio.EOF:
                os.write(fd, data)
        finally:
            task.cancel()
            loop.remove_reader(fd)
            os.close(fd)

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler = grpc.method_handlers_generic_handler(
        "raw",
        {
            "ping": grpc.unary_unary_rpc_method_handler(ping),
            "items": grpc.unary_stream_rpc_method_handler(items),
            "sink": grpc.stream_unary_rpc_method_handler(sink),
            "relay": grpc.stream_stream_rpc_method_handler(relay),
            "console": grpc.stream_stream_rpc_method_handler(console),
        },
    )
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port(address)
    await server.start()
    print(f'READY {{"address": "127.0.0.1:{port}"}}', flush=True)
    await asyncio.to_thread(sys.stdin.read)


def client(address: str) -> None:
    """The client's side of every limit, as a worker."""
    import grpc

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    async def open_channel() -> Any:
        return grpc.aio.insecure_channel(address)

    channel = run(open_channel())

    def unary(n: int) -> dict[str, float]:
        async def go() -> dict[str, float]:
            call = channel.unary_unary("/raw/ping")
            for _ in range(30):
                await call(_PING)
            samples = []
            for _ in range(n):
                t0 = time.perf_counter()
                await call(_PING)
                samples.append(time.perf_counter() - t0)
            samples.sort()
            return {"p50": samples[n // 2]}

        result: dict[str, float] = run(go())
        return result

    def items(n: int) -> dict[str, float]:
        async def go() -> dict[str, float]:
            t0, k = time.perf_counter(), 0
            async for _ in channel.unary_stream("/raw/items")(str(n).encode()):
                k += 1
            return {"per_s": k / (time.perf_counter() - t0)}

        result: dict[str, float] = run(go())
        return result

    def flash(path: str, target: str) -> dict[str, float]:
        async def go() -> dict[str, float]:
            size, t0 = os.path.getsize(path), time.perf_counter()
            call = channel.stream_unary("/raw/sink")()
            await call.write(target.encode())
            inner = asyncio.get_running_loop()
            with open(path, "rb", buffering=0) as file:
                while data := await inner.run_in_executor(None, file.read, MIB):
                    await call.write(data)
            await call.done_writing()
            await call
            return {"mb_s": size / (time.perf_counter() - t0) / 1e6}

        result: dict[str, float] = run(go())
        return result

    def forward() -> dict[str, str]:
        async def handle(reader: Any, writer: Any) -> None:
            call = channel.stream_stream("/raw/relay")()

            async def up() -> None:
                while data := await reader.read(MIB):
                    await call.write(data)
                await call.done_writing()

            task = asyncio.ensure_future(up())
            while (data := await call.read()) is not grpc.aio.EOF:
                writer.write(data)
                await writer.drain()
            await task
            writer.close()

        async def go() -> str:
            server = await asyncio.start_server(handle, "127.0.0.1", 0, limit=4 * MIB)
            return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

        return {"address": run(go())}

    def console(n: int) -> dict[str, float]:
        async def open_call() -> Any:
            return channel.stream_stream("/raw/console")()

        call = run(open_call())

        async def once() -> None:
            await call.write(b"x")
            await call.read()

        async def go() -> dict[str, float]:
            samples = []
            for i in range(n + 30):
                t0 = time.perf_counter()
                await once()
                if i >= 30:
                    samples.append(time.perf_counter() - t0)
            samples.sort()
            await call.done_writing()
            return {"p50": samples[n // 2]}

        result: dict[str, float] = run(go())
        return result

    worker_main({"unary": unary, "items": items, "flash": flash, "forward": forward, "console": console})


def dut() -> None:
    """A TCP device. First byte of a connection: S sink (answers the count), T source of n bytes."""
    server = socket.create_server(("127.0.0.1", 0), backlog=64)

    def serve_one(peer: socket.socket) -> None:
        with peer:
            kind, size = peer.recv(1), int.from_bytes(peer.recv(8, socket.MSG_WAITALL), "big")
            buffer = bytearray(MIB)
            if kind == b"S":
                left = size
                while left > 0 and (n := peer.recv_into(buffer)):
                    left -= n
                peer.sendall(b"!")
            else:
                sent = 0
                while sent < size:
                    sent += peer.send(memoryview(buffer)[: size - sent])

    def accept() -> None:
        while True:
            peer, _ = server.accept()
            threading.Thread(target=serve_one, args=(peer,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    worker_main({}, {"address": f"127.0.0.1:{server.getsockname()[1]}"})


def move(address: str, size: int, direction: str) -> float:
    """MB/s through a forwarded port."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port))) as peer:
        t0 = time.perf_counter()
        peer.sendall((b"S" if direction == "up" else b"T") + size.to_bytes(8, "big"))
        buffer = bytearray(MIB)
        if direction == "up":
            sent = 0
            while sent < size:
                sent += peer.send(memoryview(buffer)[: size - sent])
            peer.recv(1)
        else:
            left = size
            while left > 0:
                n = peer.recv_into(buffer)
                if not n:
                    raise RuntimeError(f"{left} bytes missing")
                left -= n
        return size / (time.perf_counter() - t0) / 1e6


def echo_pty() -> None:
    """A pty whose far end sends back what it gets."""
    master, slave = pty.openpty()
    tty.setraw(master)
    tty.setraw(slave)

    def echo() -> None:
        while True:
            try:
                os.write(master, os.read(master, 65536))
            except OSError:
                return

    threading.Thread(target=echo, daemon=True).start()
    worker_main({}, {"path": os.ttyname(slave)})


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command == "serve":
        asyncio.run(serve(*rest))  # type: ignore[arg-type]
    elif command == "client":
        client(*rest)
    elif command == "dut":
        dut()
    elif command == "pty":
        echo_pty()
    elif command == "importgrpc":
        import grpc.aio

        assert grpc.aio
        print("READY {}", flush=True)
        sys.stdin.read()
    else:
        raise SystemExit(__doc__)
