# SPDX-License-Identifier: Apache-2.0
"""A client worker for ours and for the original alike: both have the same Python API.

product.py HOST:PORT
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from typing import Any

from anyio.from_thread import start_blocking_portal
from harness import latencies, worker_main

from jumpstarter.client.client import client_from_path
from jumpstarter_driver_network.adapters import TcpPortforwardAdapter


def main(address: str) -> None:
    """Connect and serve operations."""
    keep = ExitStack()
    with start_blocking_portal() as portal, ExitStack() as stack:
        context = client_from_path(address, portal, stack, allow=[], unsafe=True, insecure=True)
        with portal.wrap_async_context_manager(context) as root:
            bench = root.children["bench"]

            def unary(n: int, method: str = "ping") -> dict[str, float]:
                return latencies(lambda: bench.call(method), n)

            def items(n: int) -> dict[str, float]:
                t0 = time.perf_counter()
                got = sum(1 for _ in bench.streamingcall("items", n))
                return {"per_s": got / (time.perf_counter() - t0)}

            def flash(path: str, **kwargs: Any) -> dict[str, float]:
                t0 = time.perf_counter()
                root.children["flasher"].flash(path, **kwargs)
                return {"mb_s": os.path.getsize(path) / (time.perf_counter() - t0) / 1e6}

            def forward() -> dict[str, str]:
                host, port = keep.enter_context(TcpPortforwardAdapter(client=root.children["dut"]))
                return {"address": f"{host}:{port}"}

            def console(n: int) -> dict[str, float]:
                async def go() -> dict[str, float]:
                    samples = []
                    async with root.children["serial"].stream_async(method="connect") as stream:
                        for _ in range(n + 30):
                            t0 = time.perf_counter()
                            await stream.send(b"x")
                            await stream.receive()
                            samples.append(time.perf_counter() - t0)
                    samples = sorted(samples[30:])
                    return {"p50": samples[n // 2]}

                return portal.call(go)

            def console_blocking(n: int) -> dict[str, float]:
                with root.children["serial"].stream() as stream:

                    def once() -> None:
                        stream.send(b"x")
                        stream.receive()

                    return latencies(once, n)

            def store(path: str) -> dict[str, float]:
                t0 = time.perf_counter()
                root.children["files"].write_from_path("image", path)
                return {"mb_s": os.path.getsize(path) / (time.perf_counter() - t0) / 1e6}

            def fetch(path: str) -> dict[str, float]:
                t0 = time.perf_counter()
                root.children["files"].read_into_path("image", path)
                return {"mb_s": os.path.getsize(path) / (time.perf_counter() - t0) / 1e6}

            def serve(files: dict[str, str]) -> dict[str, Any]:
                http, tftp = root.children["http"], root.children["tftp"]
                for name, path in files.items():
                    http.put_file(name, path)
                    tftp.storage.write_from_path(name, path)
                http.start()
                tftp.start()
                return {"http": http.get_url(), "tftp": int(tftp.get_port())}

            worker_main(
                {
                    "unary": unary,
                    "items": items,
                    "flash": flash,
                    "forward": forward,
                    "console": console,
                    "console_blocking": console_blocking,
                    "store": store,
                    "fetch": fetch,
                    "serve": serve,
                }
            )
            os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
