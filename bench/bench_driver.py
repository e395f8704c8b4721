# SPDX-License-Identifier: Apache-2.0
"""A trivial driver: what is measured is the framework around it. Runs under ours and under the original."""

from jumpstarter.client import DriverClient
from jumpstarter.driver import Driver, export


class Bench(Driver):
    @classmethod
    def client(cls):
        return "bench_driver.BenchClient"

    @export
    async def ping(self) -> None:
        return None

    @export
    def ping_sync(self) -> None:
        return None

    @export
    async def items(self, n: int):
        for i in range(int(n)):
            yield i


class BenchClient(DriverClient):
    pass
