# SPDX-License-Identifier: Apache-2.0
"""``make bench-controller``: one real controller under simulated exporters and clients.

Prints a table and writes build/bench-controller.json: a list of objects with database, row, unit, value, target and
how the row came about (exporters online, ended leases in the database). Everything runs on this machine over TLS; the
bare relay that a tunnel is compared with runs in the same minute, its rounds between ours.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from harness import HERE, ROOT, Worker, median, memory_mib

sys.path.insert(0, str(ROOT / "tests" / "controller"))

from postgres_harness import PostgresServer

from jumpstarter_controller.administration.subjects import create_subject
from jumpstarter_controller.config import ControllerConfig
from jumpstarter_controller.main import cli
from jumpstarter_controller.state.database import Transaction, open_database
from jumpstarter_controller.state.models import Client, Exporter, Lease

PY = sys.executable
NAMESPACE = "default"


@dataclass(frozen=True)
class Row:
    """One number. exporters, ended: how many were online, and how many ended leases the database held."""

    database: str
    row: str
    unit: str
    value: float
    exporters: int
    ended: int
    target: str = ""


@dataclass(frozen=True)
class Size:
    """How much is run. steps: exporters online. ended: leases. seconds: of the rate. messages, rounds: of a tunnel."""

    steps: tuple[int, ...]
    ended: int
    samples: int
    seconds: float
    messages: int
    rounds: int


FULL = Size((1, 10, 100, 1000), 10_000, 100, 4.0, 64, 9)
QUICK = Size((1, 3), 20, 3, 0.3, 4, 1)
CLIENTS = [f"c{number}" for number in range(8)]


def _run_cli(*argv: str | Path) -> None:
    with redirect_stdout(io.StringIO()):
        cli.main([str(word) for word in argv], standalone_mode=False)


class Bench:
    """One controller on one database, with its peers."""

    def __init__(self, stack: ExitStack, name: str, database: str, size: Size) -> None:
        self.stack, self.name, self.size = stack, name, size
        self.rows: list[Row] = []
        self.exporters = self.ended = 0
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-controller-")))
        _run_cli("ca", "init", "--dir", self.folder)
        _run_cli("ca", "issue", "--dir", self.folder, "localhost", "127.0.0.1")
        self.path = self.folder / "controller.yaml"
        self.path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "jumpstarter.lab/v1alpha1",
                    "kind": "ControllerConfig",
                    "listen": "127.0.0.1:0",
                    "database": database,
                    "tls": {"certificate": "server.crt", "key": "server.key", "ca": "ca.crt"},
                }
            )
        )
        self.config = ControllerConfig.load(self.path)
        names = [f"e{number:04}" for number in range(size.steps[-1])]
        with_tokens = self._identities(names, CLIENTS)
        # It does not read its stdin, so it would not notice the end of this program.
        argv = [
            "setpriv",
            "--pdeathsig",
            "TERM",
            PY,
            "-m",
            "jumpstarter_controller",
            "serve",
            "--config",
            self.path,
            "--log-level",
            "WARNING",
        ]
        self.controller = stack.enter_context(Worker(f"controller {name}", argv))
        self.lab = self.folder / "lab.json"
        self.lab.write_text(
            json.dumps(
                {
                    "endpoint": self.controller.info["endpoint"],
                    "ca": (self.folder / "ca.crt").read_text(),
                    "exporters": with_tokens[: len(names)],
                    "clients": with_tokens[len(names) :],
                }
            )
        )
        self.boards = self._peer("exporters", self.lab)
        self.client = self._peer("client", self.lab)

    def _peer(self, kind: str, *arguments: object) -> Worker:
        return self.stack.enter_context(Worker(f"{kind} {self.name}", [PY, HERE / "lab_peers.py", kind, *arguments]))

    def _identities(self, exporters: list[str], clients: list[str]) -> list[tuple[str, str]]:
        def make(tx: Transaction) -> list[tuple[str, str]]:
            made = []
            for number, name in enumerate(exporters):
                labels = {"board": "x", "rack": str(number % 16), "n": str(number)}
                made.append((name, create_subject(tx, "exporter", NAMESPACE, name, labels, 86400.0)))
            for name in clients:
                made.append((name, create_subject(tx, "client", NAMESPACE, name, {}, 86400.0)))
            return made

        database = open_database(self.config.database)
        try:
            return database.write_now(make)
        finally:
            database.close()

    def bury(self, count: int) -> None:
        """Put ended leases into the database."""

        def make(tx: Transaction) -> None:
            client = tx.session.query(Client).first()
            boards = tx.session.query(Exporter).all()
            assert client is not None
            for number in range(count):
                tx.session.add(
                    Lease(
                        namespace=NAMESPACE, name=f"old-{number}", client_id=client.id, selector="board=x",
                        exporter_id=boards[number % len(boards)].id, duration=600.0, ended=True, created_at=tx.now,
                        effective_begin=tx.now - 600, effective_end=tx.now, expires_at=tx.now,
                    )
                )  # fmt: skip

        database = open_database(self.config.database)
        try:
            database.write_now(make)
        finally:
            database.close()
        self.ended = count

    def add(self, row: str, unit: str, value: float, target: str = "") -> None:
        """A result."""
        self.rows.append(Row(self.name, row, unit, value, self.exporters, self.ended, target))
        print(
            f"  {self.name:10} {self.exporters:5} {self.ended:6}  {row:44} {value:10.1f} {unit:5} {target}", flush=True
        )

    def memory(self) -> float:
        """PSS of the controller, MiB."""
        return memory_mib(self.controller.process.pid)

    def settle(self) -> float:
        """PSS when it does not move any more."""
        before = self.memory()
        while True:
            time.sleep(0.5)
            now = self.memory()
            if abs(now - before) < 0.2:
                return now
            before = now

    def step(self, count: int) -> None:
        """Bring exporters online until there are so many, and measure what one of them costs and how leases go."""
        before, new = self.settle(), count - self.exporters
        took = self.boards.call("up", count=count)["seconds"]
        self.exporters = count
        self.add("exporters that register", "1/s", new / took)
        if new > 1:  # the first one brings the code into memory
            each = (self.settle() - before) / new * 1024
            self.add("controller memory (PSS) per exporter more", "KiB", each, "<= 100 KiB")
        self.leases()

    def leases(self) -> None:
        """Acquire latency and leases per second with what is online now."""
        selectors = {"acquire": "board=x", "acquire, one board in sixteen": "board=x,rack=0"}
        for row, selector in selectors.items():
            spread = self.client.call("acquire", n=self.size.samples, selector=selector)
            self.add(f"{row}, p50", "ms", spread["p50"] * 1e3, "< 50 ms")
            self.add(f"{row}, p99", "ms", spread["p99"] * 1e3)
        rate = self.client.call("rate", seconds=self.size.seconds, selector="board=x", holders=len(CLIENTS))
        self.add(f"leases taken and given back, {len(CLIENTS)} clients", "1/s", rate["per_s"])

    def tunnels(self) -> None:
        """Dial latency, and what a tunnel carries beside the bare relay."""
        spread = self.client.call("dial", n=self.size.samples, selector="board=x")
        self.add("dial to first byte back, p50", "ms", spread["p50"] * 1e3)
        self.add("dial to first byte back, p99", "ms", spread["p99"] * 1e3)
        relay = self.stack.enter_context(
            Worker(
                f"relay {self.name}",
                [PY, HERE / "lab_peers.py", "relay", self.folder / "server.crt", self.folder / "server.key"],
            )
        )
        far = self._peer("far", self.lab)
        for down in (False, True):
            speeds: dict[str, list[float]] = {"ours": [], "secure": [], "plain": []}
            for _ in range(self.size.rounds):
                got = self.client.call("tunnel", messages=self.size.messages, down=down, selector="board=x")
                speeds["ours"].append(got["mb_s"])
                for kind in ("secure", "plain"):
                    address, secure = relay.info[kind], kind == "secure"
                    far.call("serve", address=address, secure=secure)
                    got = self.client.call(
                        "bare", messages=self.size.messages, down=down, address=address, secure=secure
                    )
                    speeds[kind].append(got["mb_s"])
            way = "down" if down else "up"
            self.add(f"tunnel, 1 MiB messages, {way}", "MB/s", median(speeds["ours"]))
            self.add(f"bare grpc.aio relay, TLS, {way}", "MB/s", median(speeds["secure"]))
            self.add(f"bare grpc.aio relay, no TLS, {way}", "MB/s", median(speeds["plain"]))
            for kind, words in (("secure", "TLS"), ("plain", "no TLS")):
                ratio = median(a / b for a, b in zip(speeds["ours"], speeds[kind], strict=True))
                target = ">= 0.8 x" if kind == "secure" else ""
                self.add(f"tunnel over bare relay, {words}, {way}", "x", ratio, target)

    def run(self) -> None:
        """Everything, in order."""
        for count in self.size.steps:
            self.step(count)
        self.bury(self.size.ended)
        self.leases()
        self.tunnels()
        self.add("controller memory (PSS)", "MiB", self.settle())


class _Postgres(PostgresServer):
    """With the settings of a server whose data matter."""

    settings = ("max_connections=200",)


def table(rows: list[Row]) -> str:
    """A line for each number, a column for each size of the lab."""
    sizes = list(dict.fromkeys((row.exporters, row.ended) for row in rows))
    head = ["database", "what", "unit"]
    head += [f"{exporters} online" + (f", {ended} ended" if ended else "") for exporters, ended in sizes]
    lines = [[*head, "target"]]
    for database, name in dict.fromkeys((row.database, row.row) for row in rows):
        found = {(row.exporters, row.ended): row for row in rows if (row.database, row.row) == (database, name)}
        one = next(iter(found.values()))
        cells = [f"{found[size].value:.{_digits(found[size].value)}f}" if size in found else "" for size in sizes]
        lines.append([database, name, one.unit, *cells, one.target])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text.insert(1, "-|-".join("-" * width for width in widths))
    return "\n".join(text)


def _digits(value: float) -> int:
    return 0 if value >= 100 else 1 if value >= 10 else 2


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few exporters and samples: does it run at all?")
    parser.add_argument("--only", choices=["sqlite", "postgresql"], help="one of the databases")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench-controller.json")
    options = parser.parse_args()
    size, rows = QUICK if options.quick else FULL, list[Row]()
    for name in [options.only] if options.only else ["sqlite", "postgresql"]:
        with ExitStack() as stack:
            database = "lab.db"
            if name == "postgresql":
                server = stack.enter_context(_Postgres.running())
                database = stack.enter_context(server.database())
            bench = Bench(stack, name, database, size)
            try:
                bench.run()
            finally:
                rows += bench.rows
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print(f"\n{table(rows)}\n\n{options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
