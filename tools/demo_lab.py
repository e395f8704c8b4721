# SPDX-License-Identifier: Apache-2.0
"""A whole lab on this machine: authority, controller, three exporters, and a play over all of them.

``make demo-lab`` runs it. Every command is shown as it is given, so that this is also the shortest manual of a lab.
With ``--keep`` the lab stays after the play, until Ctrl-C, to be tried out by hand.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
LAB = ROOT / "build" / "demo-lab"
BIN = Path(sys.executable).parent
#: Name and labels of each board.
BOARDS = {"virt-1": "a", "virt-2": "a", "virt-3": "b"}
_START_SECONDS = 120.0

CONTROLLER = {
    "apiVersion": "jumpstarter.lab/v1alpha1",
    "kind": "ControllerConfig",
    "listen": "127.0.0.1:0",
    "database": "lab.db",
    "tls": {"certificate": "server.crt", "key": "server.key", "ca": "ca.crt"},
}


def show(*argv: str | Path) -> list[str]:
    """Print a command as one would type it, and return it as it is run."""
    words = [str(word) for word in argv]
    shown = [os.path.relpath(word, ROOT) if word.startswith(str(ROOT)) else word for word in words]
    print("\n$", shlex.join(shown), flush=True)
    return [str(BIN / words[0]), *words[1:]]


def run(*argv: str | Path) -> int:
    """Show a command, run it, and return its exit code."""
    return subprocess.run(show(*argv), cwd=ROOT, check=False).returncode


def must(*argv: str | Path) -> None:
    """As `run`, for what nothing goes on without."""
    code = run(*argv)
    if code:
        raise SystemExit(f"demo-lab: {argv[0]} ended with exit code {code}")


@contextlib.contextmanager
def process(log: Path, argv: list[str], **options: object) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the context; what it says goes to ``log``."""
    with log.open("w") as out:
        # A session of its own: Ctrl-C is for the play first, and we end these in order.
        started = subprocess.Popen(argv, cwd=ROOT, stderr=out, start_new_session=True, text=True, **options)  # type: ignore[call-overload]
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(60)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


@contextlib.contextmanager
def controller() -> Iterator[str]:
    """The controller; yields its endpoint."""
    must("jumpstarter-controller", "ca", "init", "--dir", LAB)
    must("jumpstarter-controller", "ca", "issue", "--dir", LAB, "localhost", "127.0.0.1")
    (LAB / "controller.yaml").write_text(yaml.safe_dump(CONTROLLER, sort_keys=False))
    argv = show("jumpstarter-controller", "serve", "--config", LAB / "controller.yaml")
    with process(LAB / "controller.log", argv, stdout=subprocess.PIPE) as started:
        line = started.stdout.readline() if started.stdout else ""
        if not line.startswith("READY "):
            raise SystemExit(f"demo-lab: the controller does not start, see {LAB / 'controller.log'}")
        endpoint = str(json.loads(line.removeprefix("READY "))["endpoint"])
        print(f"serves {endpoint}")
        yield endpoint


def create(kind: str, name: str, endpoint: str, save: Path, *options: str) -> None:
    """Make a client or exporter and the file with its token."""
    config = LAB / "controller.yaml"
    where = ("--config", config, "--endpoint", endpoint, "--save", save)
    must("jumpstarter-controller", "admin", "create", kind, name, *where, *options)


def board_file(name: str, rack: str, endpoint: str) -> Path:
    """The exporter's configuration: its identity from the controller, its drivers from boards/virt-arm64.yaml."""
    path = LAB / f"{name}.yaml"
    create("exporter", name, endpoint, path, "-l", "board=virt-arm64", "-l", f"rack={rack}")
    board = yaml.safe_load((ROOT / "boards" / "virt-arm64.yaml").read_text())
    board["export"]["qemu"]["config"] |= {"state_dir": str(LAB / "state" / name), "hostname": name}
    identity = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**identity, "export": board["export"]}, sort_keys=False))
    return path


@contextlib.contextmanager
def exporter(name: str, path: Path) -> Iterator[None]:
    """The exporter, registered at the controller."""
    ready = LAB / f"{name}.ready"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        # As systemd would be told; a relative name keeps the path short.
        notified.bind(os.path.relpath(ready))
        notified.settimeout(_START_SECONDS)
        argv = show("jmp", "run", "--exporter-config", path)
        environment = {**os.environ, "NOTIFY_SOCKET": str(ready)}
        with process(LAB / f"{name}.log", argv, stdout=subprocess.DEVNULL, env=environment):
            try:
                while b"READY=1" not in notified.recv(4096):
                    pass
            except TimeoutError:
                raise SystemExit(f"demo-lab: exporter {name} does not start, see {LAB / f'{name}.log'}") from None
            yield


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One demonstration at a time: they would share files."""
    LAB.parent.mkdir(exist_ok=True)
    with (LAB.parent / "demo-lab.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit("demo-lab: another one is running in this folder") from None
        yield


def main() -> int:
    """Run it; returns the play's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--keep", action="store_true", help="keep the lab after the play, until Ctrl-C")
    keep = parser.parse_args().keep
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with alone(), contextlib.ExitStack() as lab:
        shutil.rmtree(LAB, ignore_errors=True)
        LAB.mkdir(mode=0o700)
        endpoint = lab.enter_context(controller())
        client = LAB / "client.yaml"
        create("client", "demo", endpoint, client, "--admin", "--allow", "jumpstarter_driver_*")
        for name, rack in BOARDS.items():
            lab.enter_context(exporter(name, board_file(name, rack, endpoint)))
        must("jmp", "get", "exporters", "--client-config", client, "--with", "online,status,leases")
        inventory = ROOT / "inventories" / "demo-lab"
        # A play over no hosts would be a success.
        os.environ["ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED"] = "true"
        code = run("ansible-playbook", "-i", inventory, ROOT / "playbooks" / "flash_and_test.yml")
        run("jumpstarter-controller", "admin", "audit", "--config", LAB / "controller.yaml", "-n", "12")
        if keep:
            print("\nThe lab stays until Ctrl-C. In another shell, for example:")
            show("jmp", "shell", "--client-config", client, "-l", "rack=b", "--", "j", "power", "on")
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
    return code


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
