# SPDX-License-Identifier: Apache-2.0
"""``make bench``: every row of the design's speed table, ours beside the raw limit and the original, in one run.

Prints a table of medians and ratios and writes build/bench.json: a list of objects with row, unit, ours, limit,
original, ours_over_limit, ours_over_original. Ratios are medians of the ratios of each round. The original
(``jumpstarter-*`` 0.9.0) is installed into build/bench-original; where that fails its column stays empty.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import board_flash
import servers
from harness import HERE, MIB, ROOT, Worker, WorkerError, median, memory_mib
from limits import move
from original import original_python

PY = sys.executable


@dataclass
class Row:
    """One line of the result. Better is lower where the unit is a time or a size, higher where it is a rate."""

    row: str
    unit: str
    ours: float | None
    limit: float | None
    original: float | None
    ours_over_limit: float | None
    ours_over_original: float | None
    target: str


class Series:
    """Values of ours, limit and original, round by round."""

    def __init__(self) -> None:
        self.values: dict[str, list[float | None]] = {"ours": [], "limit": [], "original": []}

    def add(self, **values: float | None) -> None:
        """One round."""
        for name, series in self.values.items():
            series.append(values.get(name))

    def row(self, name: str, unit: str, target: str, scale: float = 1) -> Row:
        """The row of this series; values are multiplied by ``scale``."""

        def middle(which: str) -> float | None:
            got = [v for v in self.values[which] if v is not None]
            return median(got) * scale if got else None

        def ratio(which: str) -> float | None:
            pairs = zip(self.values["ours"], self.values[which], strict=True)
            got = [a / b for a, b in pairs if a is not None and b]
            return median(got) if got else None

        return Row(
            name, unit, middle("ours"), middle("limit"), middle("original"), ratio("limit"), ratio("original"), target
        )


class Bench:
    """The processes of one run and the rows measured with them."""

    def __init__(self, stack: ExitStack, rounds: int, mib: int, original: Path | None) -> None:
        self.stack = stack
        self.rounds = rounds
        self.mib = mib
        self.original = original
        shm = Path("/dev/shm")
        base = shm if shm.is_dir() and os.access(shm, os.W_OK) else None
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=base)))
        self.peers: dict[str, Worker] = {}

    def worker(self, name: str, argv: list[object], **kwargs: Any) -> Worker:
        """Start a worker that ends with the run."""
        return self.stack.enter_context(Worker(name, argv, **kwargs))

    def start_peers(self) -> None:
        """Devices, exporters and clients for the rows that move data."""
        dut = self.worker("dut", [PY, HERE / "limits.py", "dut"]).info["address"]
        ptys = {n: self.worker(f"pty {n}", [PY, HERE / "limits.py", "pty"]).info["path"]
                for n in ("limit", "ours", "original")}  # fmt: skip
        raw = self.worker("limit exporter", [PY, HERE / "limits.py", "serve", "127.0.0.1:0", dut, ptys["limit"]])
        self.peers["limit"] = self.worker("limit client", [PY, HERE / "limits.py", "client", raw.info["address"]])
        products = {"ours": Path(PY)} | ({"original": self.original} if self.original else {})
        for name, python in products.items():
            address = self.exporter(name, python, dut, ptys[name])
            self.peers[name] = self.worker(f"{name} client", [python, HERE / "product.py", address])

    def exporter(self, name: str, python: Path, dut: str, tty: str) -> str:
        """Start an exporter with ``jmp run`` and return its address."""
        host, port = dut.rsplit(":", 1)
        storage = self.folder / name
        storage.mkdir()
        flasher = (
            {
                "type": "jumpstarter_driver_storage.driver.FileFlasher",
                "config": {"path": str(storage / "target.img"), "state_dir": str(storage / "state")},
            }
            if name == "ours"
            else {"type": "jumpstarter_driver_opendal.driver.MockFlasher"}
        )
        config = {
            "apiVersion": "jumpstarter.dev/v1alpha1",
            "kind": "ExporterConfig",
            "metadata": {"namespace": "default", "name": f"bench-{name}"},
            "endpoint": "",
            "token": "",
            "export": {
                "bench": {"type": "bench_driver.Bench"},
                "power": {"type": "jumpstarter_driver_power.driver.MockPower"},
                "dut": {"type": "jumpstarter_driver_network.driver.TcpNetwork",
                        "config": {"host": host, "port": int(port)}},
                "serial": {"type": "jumpstarter_driver_pyserial.driver.PySerial", "config": {"url": tty}},
                "flasher": flasher,
                **servers.drivers(name, storage),
            },
        }  # fmt: skip
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(config))
        port_number = free_port()
        address = f"127.0.0.1:{port_number}"
        argv = [python, HERE / "ready.py", port_number, python.parent / "jmp", "run", "--exporter-config", path,
                "--tls-grpc-listener", address, "--tls-grpc-insecure"]  # fmt: skip
        self.worker(f"{name} exporter", argv, env={"TMPDIR": str(storage)})
        return address

    def _peers(self, op: str, key: str, **arguments: Any) -> dict[str, float | None]:
        values: dict[str, float | None] = {}
        for name, peer in self.peers.items():
            values[name] = peer.call(op, **arguments)[key]
        return values

    # Rows ------------------------------------------------------------------------------------------------------

    def calls(self) -> list[Row]:
        """Unary call, p50."""
        series = Series()
        for _ in range(self.rounds):
            series.add(**self._peers("unary", "p50", n=400))
        return [series.row("unary driver call, p50", "us", "<= 1.3 x limit", 1e6)]

    def items(self) -> list[Row]:
        """Streamed items."""
        series = Series()
        for _ in range(self.rounds):
            series.add(**self._peers("items", "per_s", n=4000))
        return [series.row("streamed items", "1/s", ">= 0.8 x limit, >= 2.5 x original")]

    def flash(self) -> list[Row]:
        """A file from the client to a file of the exporter, over TCP."""
        source = self.folder / "image.bin"
        block = os.urandom(MIB)
        with source.open("wb") as file:
            for i in range(self.mib):
                file.write(block[i % 4096 :] + block[: i % 4096])
        plain, verified = Series(), Series()
        for number in range(max(3, self.rounds // 2)):
            with source.open("r+b") as file:
                file.write(b"%16d" % number)  # another image each time, or ours would have nothing to do
            limit = self.peers["limit"].call("flash", path=str(source), target=str(self.folder / "limit.img"))["mb_s"]
            original = None
            if "original" in self.peers:
                original = self.peers["original"].call("flash", path=str(source))["mb_s"]
            ours = self.peers["ours"].call("flash", path=str(source), verify=False)["mb_s"]
            plain.add(ours=ours, limit=limit, original=original)
            with source.open("r+b") as file:
                file.write(b"%16d" % (number + 1000))
            checked = self.peers["ours"].call("flash", path=str(source), verify=True)["mb_s"]
            verified.add(ours=checked, limit=limit, original=original)
        source.unlink()
        size = f"flash {self.mib} MiB to a file, TCP"
        return [
            plain.row(size, "MB/s", ">= 0.9 x limit, >= 5 x original"),
            verified.row(f"{size}, read back and verified", "MB/s", "(no target: nobody else verifies)"),
        ]

    def opendal(self) -> list[Row]:
        """A file into the storage and back, over TCP."""
        source = servers.make_file(self.folder / "stored.bin", self.mib // 2)
        back = self.folder / "fetched.bin"
        store, fetch = Series(), Series()
        products = {name: peer for name, peer in self.peers.items() if name != "limit"}
        for _ in range(max(3, self.rounds // 2)):
            limit = servers.copy_rate(source, self.folder / "copied.bin")
            store.add(limit=limit, **{n: peer.call("store", path=str(source))["mb_s"] for n, peer in products.items()})
            fetch.add(limit=limit, **{n: peer.call("fetch", path=str(back))["mb_s"] for n, peer in products.items()})
        back.unlink()
        source.unlink()
        size = f"{self.mib // 2} MiB"
        return [
            store.row(f"opendal, store {size}, TCP, digest proved", "MB/s", ">= 3 x original; limit is cp"),
            fetch.row(f"opendal, fetch {size}, TCP", "MB/s", ">= 3 x original; limit is cp"),
        ]

    def servers(self) -> list[Row]:
        """Downloads from the HTTP and the TFTP server of the exporter."""
        large = servers.make_file(self.folder / "large", self.mib // 2)
        middle, small = servers.make_file(self.folder / "middle", 16), servers.make_file(self.folder / "small", 2)
        files = {path.name: str(path) for path in (large, middle, small)}
        products = {n: peer.call("serve", files=files) for n, peer in self.peers.items() if n != "limit"}
        rounds = max(3, self.rounds // 2)
        web = Series()
        with servers.static_server(self.folder) as static:
            for _ in range(rounds):
                urls = {"limit": static} | {n: peer["http"] for n, peer in products.items()}
                web.add(**{n: servers.http_rate(f"{url}/large") for n, url in urls.items()})
        rows = [web.row(f"http, download {self.mib // 2} MiB", "MB/s", ">= 0.9 x limit (aiohttp static)")]
        with servers.in_tftpd(self.folder) as daemon:
            ports = {"limit": daemon} | {n: peer["tftp"] for n, peer in products.items()}
            for blksize, windowsize in servers.TFTP:
                series = Series()
                for _ in range(rounds):
                    series.add(**{n: self._tftp(n, port, blksize, windowsize) for n, port in ports.items()})
                what = f"tftp, blksize {blksize}, windowsize {windowsize}"
                target = ">= 0.5 x in.tftpd" if windowsize == 1 else "(in.tftpd knows no windowsize)"
                rows.append(series.row(what, "MB/s", target))
        return rows

    def _tftp(self, name: str, port: int, blksize: int, windowsize: int) -> float:
        # at 1 MB/s the original gets the small file
        path, size = ("small", 2 * MIB) if name == "original" and blksize < 8192 else ("middle", 16 * MIB)
        return servers.tftp_rate(port, path, size, blksize, windowsize, self.folder / "boot.bin")

    def flashers(self) -> list[Row]:
        """An image onto a board's disk through its U-Boot, from power on."""
        bare, checked = Series(), Series()
        for number in range(max(3, self.rounds // 2)):
            image = board_flash.make_image(self.folder, 48, number)
            ours = board_flash.by_driver(self.folder, image)
            bare.add(limit=board_flash.by_hand(self.folder, image, verify=False), ours=ours)
            checked.add(limit=board_flash.by_hand(self.folder, image, verify=True), ours=ours)
        what = "flashers, 48 MiB by U-Boot, from power on, read back and verified"
        return [
            checked.row(what, "s", "(limit: the same commands typed, QEMU's own TFTP)"),
            bare.row(f"{what} by ours only", "s", "(limit: the same without checks)"),
        ]

    def forward(self) -> list[Row]:
        """Bulk through a port forward, up and down."""
        addresses = {name: peer.call("forward")["address"] for name, peer in self.peers.items()}
        rows = []
        for direction in ("up", "down"):
            series = Series()
            for _ in range(self.rounds):
                series.add(**{name: move(address, 128 * MIB, direction) for name, address in addresses.items()})
            rows.append(series.row(f"port forward, bulk, {direction}", "MB/s", ">= 0.9 x limit, >= 2.5 x original"))
        return rows

    def console(self) -> list[Row]:
        """One byte to a pty that echoes, and back."""
        series, blocking = Series(), Series()
        for _ in range(self.rounds):
            values = self._peers("console", "p50", n=200)
            series.add(**values)
            threads = {n: p.call("console_blocking", n=200)["p50"] for n, p in self.peers.items() if n != "limit"}
            blocking.add(**threads, limit=values["limit"])
        return [
            series.row("console byte round trip, p50", "us", "<= 1.2 x limit", 1e6),
            blocking.row("console byte round trip, blocking client", "us", "(no target)", 1e6),
        ]

    def command_line(self) -> list[Row]:
        """``j power on`` inside a lease."""
        config = self.folder / "cli.yaml"
        config.write_text(json.dumps(power_only("bench-cli")))
        series = Series()
        times = self._cli(Path(PY), config, 10)
        old = self._cli(self.original, config, 4) if self.original else None
        for number, (j, floor) in enumerate(zip(times["j"], times["floor"], strict=True)):
            original = old["j"][number % len(old["j"])] if old else None
            series.add(ours=j, limit=floor, original=original)
        return [series.row("`j power on` inside a lease", "ms", "<= 3 x limit", 1e3)]

    def _cli(self, python: Path, config: Path, rounds: int) -> dict[str, list[float]]:
        shell = [python.parent / "jmp", "shell", "--exporter-config", config, "--"]
        argv = [*shell, python, HERE / "cli_times.py", rounds]
        done = subprocess.run(
            [str(a) for a in argv], capture_output=True, text=True, timeout=300, check=False,
            env={**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}", "PYTHONPATH": str(HERE)},
        )  # fmt: skip
        for line in done.stdout.splitlines():
            if line.startswith("TIMES "):
                times: dict[str, list[float]] = json.loads(line[6:])
                return times
        raise WorkerError(f"{' '.join(map(str, argv))}: {done.stderr[-400:]}")

    def exporter_cost(self) -> list[Row]:
        """Start and idle memory of an exporter."""
        config = self.folder / "idle.yaml"
        config.write_text(json.dumps(power_only("bench-idle")))
        start, memory = Series(), Series()
        for number in range(self.rounds):
            measured: dict[str, tuple[float, float]] = {}
            with Worker("import grpc.aio", [PY, HERE / "limits.py", "importgrpc"]) as worker:
                measured["limit"] = (worker.start_seconds, memory_mib(worker.process.pid))
            socket = self.folder / f"idle-{number}.sock"
            argv: list[object] = [PY, "-m", "jumpstarter.exporter", "--config", config, "--listen", f"unix:{socket}"]
            with Worker("idle exporter", argv) as worker:
                measured["ours"] = (worker.start_seconds, memory_mib(worker.process.pid))
            if self.original and number < 3:
                port = free_port()
                argv = [PY, HERE / "ready.py", port, self.original.parent / "jmp", "run", "--exporter-config", config,
                        "--tls-grpc-listener", f"127.0.0.1:{port}", "--tls-grpc-insecure"]  # fmt: skip
                with Worker("idle original", argv) as worker:
                    children = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children").read_text()
                    measured["original"] = (worker.start_seconds, sum(memory_mib(int(p)) for p in children.split()))
            start.add(**{name: value[0] for name, value in measured.items()})
            memory.add(**{name: value[1] for name, value in measured.items()})
        return [
            start.row("exporter start", "ms", "<= 2 x limit", 1e3),
            memory.row("exporter idle memory (PSS)", "MiB", "<= 2 x limit"),
        ]

    def ansible(self) -> list[Row]:
        """A task with one driver call beside a task that does nothing."""
        config = self.folder / "ansible.yaml"
        config.write_text(json.dumps(power_only("bench-ansible")))
        inventory = self.folder / "hosts.json"
        many = {f"dut{i:02}": {"jumpstarter_exporter_config": str(config)} for i in range(1)}
        inventory.write_text(json.dumps({"all": {"hosts": many}}))
        call = {"name": "ours", "jumpstarter.lab.power": {"state": "status"}}
        tasks: list[dict[str, Any]] = [{"name": "warm", "jumpstarter.lab.power": {"state": "on"}}]
        for _ in range(15 * self.rounds):
            tasks += [{"name": "limit", "bench_noop": {}}, call]
        playbook = self.folder / "play.json"
        playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
        times = self.folder / "times.json"
        env = {
            **os.environ,
            "ANSIBLE_ACTION_PLUGINS": str(HERE / "ansible" / "action_plugins"),
            "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "ansible" / "callback_plugins"),
            "ANSIBLE_STDOUT_CALLBACK": "bench_times",
            "ANSIBLE_DEPRECATION_WARNINGS": "0",
            "BENCH_TIMES": str(times),
        }
        command = [str(Path(PY).parent / "ansible-playbook"), "-i", str(inventory), str(playbook)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise WorkerError(f"ansible-playbook: {done.stdout[-300:]}{done.stderr[-300:]}")
        spans = json.loads(times.read_text())["spans"]
        limit = [seconds for name, seconds in spans if name == "limit"]
        ours = [seconds for name, seconds in spans if name == "ours"]
        original = self._original_task(config) if self.original else None
        series = Series()
        for a, b in zip(ours, limit, strict=True):
            series.add(ours=a, limit=b, original=original)
        return [series.row("Ansible task with one driver call", "ms", "<= 1.15 x limit", 1e3)]

    def _original_task(self, config: Path) -> float:
        """What wrapping the original's commands in a task costs: a shell and a ``j`` in it."""
        assert self.original is not None
        jmp = self.original.parent / "jmp"
        argv = [str(jmp), "shell", "--exporter-config", str(config), "--", str(jmp.parent / "j"), "power", "on"]
        with Worker("original task", [PY, HERE / "timed.py", 3, *argv]) as worker:
            return float(worker.info["median"])


def power_only(name: str) -> dict[str, Any]:
    """An exporter with one mock power driver."""
    return {
        "apiVersion": "jumpstarter.dev/v1alpha1",
        "kind": "ExporterConfig",
        "metadata": {"namespace": "default", "name": name},
        "endpoint": "",
        "token": "",
        "export": {"power": {"type": "jumpstarter_driver_power.driver.MockPower"}},
    }


def free_port() -> int:
    """A port that was free a moment ago: the original cannot choose one itself."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def table(rows: list[Row]) -> str:
    """The rows as text."""

    def number(value: float | None) -> str:
        if value is None:
            return "-"
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

    def factor(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f} x"

    lines = [["what", "unit", "ours", "limit", "original", "ours/limit", "ours/original", "target"]]
    for r in rows:
        lines.append([r.row, r.unit, number(r.ours), number(r.limit), number(r.original), factor(r.ours_over_limit),
                      factor(r.ours_over_original), r.target])  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text.insert(1, "-|-".join("-" * width for width in widths))
    return "\n".join(text)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mib", type=int, default=1024, help="size of the image that is flashed")
    parser.add_argument("--only", default="", help="comma-separated groups")
    parser.add_argument("--no-original", action="store_true", help="leave the original out")
    options = parser.parse_args()
    original = None if options.no_original else original_python()
    rows: list[Row] = []
    failed = []
    with ExitStack() as stack:
        bench = Bench(stack, options.rounds, options.mib, original)
        groups: dict[str, Callable[[], list[Row]]] = {
            "ansible": bench.ansible,
            "exporter": bench.exporter_cost,
            "cli": bench.command_line,
            "calls": bench.calls,
            "items": bench.items,
            "flash": bench.flash,
            "opendal": bench.opendal,
            "servers": bench.servers,
            "flashers": bench.flashers,
            "forward": bench.forward,
            "console": bench.console,
        }
        wanted = [g for g in groups if not options.only or g in options.only.split(",")]
        if {"calls", "items", "flash", "opendal", "servers", "forward", "console"} & set(wanted):
            bench.start_peers()
        for group in wanted:
            print(f"measuring {group} ...", flush=True)
            try:
                rows += groups[group]()
            except (WorkerError, subprocess.SubprocessError, OSError) as error:
                failed.append(group)
                print(f"{group}: {error}", file=sys.stderr)
    out = ROOT / "build" / "bench.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    print(f"\n{table(rows)}\n\n{out.relative_to(ROOT)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
