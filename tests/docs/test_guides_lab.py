# SPDX-License-Identifier: Apache-2.0
"""The guides about labs do what they say: a real controller, real exporters, and whoever uses them."""

from __future__ import annotations

import random
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from controller_harness import LabFiles
from guide_pages import Reader
from lab_stage import running_exporter
from oidc_test_issuer import LoopbackIssuer
from postgres_harness import PostgresServer


def free_port() -> str:
    """A port that nobody listens on, and that nobody gets who asks the kernel for any."""
    chance = random.Random()
    while True:
        port = chance.randrange(20000, 32000)  # below the range of ephemeral ports
        with socket.socket() as probe:
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
            return str(port)


def here() -> dict[str, str]:
    """The lab of the pages on this machine."""
    ports = {port: free_port() for port in ("8082", "8086", "9090", "8083", "8089")}
    return {"0.0.0.0:": "127.0.0.1:", "lab.example.org": "localhost", **ports}


def verify_unit(unit: Path, program: str) -> None:
    """The program is not installed here; everything else has to be right."""
    unit.write_text(unit.read_text().replace(program, "/bin/true"))
    checked = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    assert checked.returncode == 0 and unit.name not in checked.stderr, checked.stderr


def test_run_a_lab(reader: Callable[..., Reader]) -> None:
    made = reader(replace={"spotGrace: 60s": "spotGrace: 2s", **here()})
    made.read("run-a-lab.md")
    verify_unit(made.directory / "jumpstarter-controller.service", "/opt/jumpstarter/bin/jumpstarter-controller")


BOARD = {
    "power": {"type": "jumpstarter_driver_power.driver.MockPower"},
    "storage": {"type": "jumpstarter_driver_opendal.driver.MockFlasher"},
}


def test_lease_a_board(reader: Callable[..., Reader], tmp_path: Path) -> None:
    lab = LabFiles.make(tmp_path / "lab")
    with lab.serving(), ExitStack() as boards:
        for name in ("rack1-imx8", "rack1-rpi4", "rack2-rpi4"):
            rack, board = name.removeprefix("rack").split("-")
            labels = ("-l", f"board={board}", "-l", f"rack={rack}")
            boards.enter_context(running_exporter(lab, name, *labels, export=BOARD))
        lab.client("bob")
        alice = lab.client("alice")
        made = reader(replace={"lab.example.org:8082": lab.endpoint})
        (made.directory / "alice.yaml").write_bytes(alice.read_bytes())
        made.read("lease-a-board.md")
        assert "place 1 of 1 in the queue" in queue_line(made)


def queue_line(made: Reader) -> str:
    """The line of the page about the queue, compared with what a shell says that waits. bob has the other board."""
    shown = (made.directory / "place.txt").read_text().strip()
    script = """
        set -e
        jmp create lease -l board=rpi4 --lease-id other --duration 1h --wait
        jmp shell -l board=rpi4 --acquisition-timeout 5 -- true || jmp delete lease other
    """
    argv = ["bash", "-c", script]
    done = subprocess.run(
        argv, cwd=made.directory, env=made.environ, capture_output=True, text=True, timeout=120, check=True
    )
    assert shown in done.stderr, done.stderr
    return shown


def test_operate_a_lab(reader: Callable[..., Reader], tmp_path: Path) -> None:
    ports = here()
    made = reader(environ={"SSL_CERT_FILE": str(tmp_path / "corp" / "ca.crt")})
    corp = LabFiles.make(tmp_path / "corp")  # only its authority and certificate are used
    settings = {name: {"listen": f"127.0.0.1:{ports[port]}"} for name, port in (("metrics", "9090"), ("login", "8086"))}
    lab = LabFiles.make(made.directory / "lab", listen=f"127.0.0.1:{ports['8082']}", **settings)
    lab.endpoint = f"localhost:{ports['8082']}"
    (made.directory / "lab" / "controller.yaml").write_text(
        yaml.safe_dump({**yaml.safe_load(lab.config.read_text()), "endpoint": lab.endpoint}, sort_keys=False)
    )
    clients = Path(made.environ["XDG_CONFIG_HOME"]) / "jumpstarter" / "clients"
    clients.mkdir(parents=True, mode=0o700)
    lab.client("root", "--admin").rename(clients / "root.yaml")
    lab.client("alice").rename(made.directory / "alice.yaml")
    lab.exporter("rack1-rpi4").rename(made.directory / "rack1-rpi4.yaml")
    made.command("before the page", "jmp config client use root", [], {})
    (made.directory / "corp-ca.crt").write_bytes(corp.ca)
    password = made.directory / "password"
    password.touch(mode=0o600)
    password.write_text("s3cret-password\n")
    with ExitStack() as others:
        issuer = others.enter_context(LoopbackIssuer().serving(corp.folder / "server.crt", corp.folder / "server.key"))
        server = others.enter_context(PostgresServer.running())
        address = urlsplit(others.enter_context(server.database()))
        made.replace |= {
            "https://login.example.org": issuer.url,
            "lab@db.example.org/lab?sslmode=verify-full": f"lab@{address.path}?{address.query}",
            "secret-of-the-database": unquote(address.password or ""),
            # Two machines of the page, two ports here.
            "192.0.2.11:8082": f"127.0.0.1:{ports['8082']}",
            "s/192.0.2.11/192.0.2.12/": f"s/127.0.0.1:{ports['8082']}/127.0.0.1:{free_port()}/",
            **ports,
        }
        made.read("operate-a-lab.md")
        made.stop()
