# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab for plays: a controller and exporters as processes of their own, as on a lab's machines."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from benches import MOCK
from controller_harness import LabFiles

from jumpstarter.client.admin import AdminClient, connect_admin
from jumpstarter.client.controller import ControllerClient, ExporterInfo, LeaseInfo, connect_controller
from jumpstarter.config.client import ClientConfigV1Alpha1

SECONDS = 60.0


class Lab:
    """A controller, its exporters, and a client `me` for the plays."""

    def __init__(self, files: LabFiles) -> None:
        self.files = files
        self.controller: subprocess.Popen[str] | None = None
        self.exporters: dict[str, subprocess.Popen[bytes]] = {}
        self.client = files.folder / "client-me.yaml"

    @classmethod
    def start(cls, folder: Path, **settings: Any) -> Lab:
        """A running controller with these settings."""
        lab = cls(LabFiles.make(folder, **settings))
        try:
            lab.start_controller()
            lab.files.client("me")
        except BaseException:
            lab.close()
            raise
        return lab

    # -- processes

    def start_controller(self) -> None:
        """Start it, again at the address where it was."""
        document = yaml.safe_load(self.files.config.read_text())
        command = [sys.executable, "-m", "jumpstarter_controller", "serve", "--config", str(self.files.config)]
        with (self.files.folder / "controller.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=self._env())
        self.controller = process
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("READY "), (self.files.folder / "controller.log").read_text()
        self.files.endpoint = yaml.safe_load(line.removeprefix("READY "))["endpoint"]
        # From now on it comes back where its exporters and clients look for it.
        self.files.config.write_text(yaml.safe_dump({**document, "listen": self.files.endpoint}))

    def stop_controller(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """End the controller."""
        assert self.controller is not None
        self.controller.send_signal(sig)
        self.controller.communicate(timeout=30)
        self.controller = None

    def add(self, name: str, *labels: str, export: dict[str, Any] | None = None, **more: Any) -> str:
        """A new exporter with these labels ("board=x") and drivers, running; returns its name."""
        options = [word for label in labels for word in ("-l", label)]
        path = self.files.exporter(name, *options, export=export or MOCK)
        if more:
            path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **more}))
        self.run(name)
        return name

    def add_many(self, names: list[str], *labels: str) -> None:
        """Several exporters with mock drivers; waits for all of them."""
        options = [word for label in labels for word in ("-l", label)]
        for name in names:
            self.files.exporter(name, *options, export=MOCK)
            self.launch(name)
        for name in names:
            self.wait_for(lambda one, name=name: one.name == name and one.online, f"exporter {name} online")  # type: ignore[misc]

    def run(self, name: str) -> subprocess.Popen[bytes]:
        """Start the exporter `name` and wait until it can be leased (again)."""
        self.launch(name)
        self.wait_for(lambda one: one.name == name and one.online, f"exporter {name} online")
        return self.exporters[name]

    def launch(self, name: str) -> None:
        """Start the exporter `name`."""
        command = [sys.executable, "-m", "jumpstarter_cli.jmp", "run"]
        command += ["--exporter-config", str(self.files.folder / f"exporter-{name}.yaml")]
        with (self.files.folder / f"{name}.log").open("ab") as log:
            self.exporters[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env(), start_new_session=True
            )

    def kill(self, name: str) -> None:
        """Kill the exporter `name` with all of its processes, as a power cut does."""
        process = self.exporters.pop(name)
        # Its own child first: that one ends in good order when it finds itself alone.
        for pid in (*_children(process.pid), process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait(30)

    def close(self) -> None:
        """End everything and reap it."""
        for process in self.exporters.values():
            process.send_signal(signal.SIGTERM)
        for name, process in self.exporters.items():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise AssertionError(f"exporter {name} had to be killed:\n{self.log(name)}") from None
            finally:
                if self.controller is not None and name == list(self.exporters)[-1]:
                    self.stop_controller(signal.SIGTERM)
        if self.controller is not None:
            self.stop_controller(signal.SIGTERM)

    def log(self, name: str) -> str:
        """What a process has logged; name: of an exporter, or "controller"."""
        path = self.files.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def _env(self) -> dict[str, str]:
        runtime = self.files.folder / "run"
        runtime.mkdir(mode=0o700, exist_ok=True)
        return {**os.environ, "XDG_RUNTIME_DIR": str(runtime), "PYTHONUNBUFFERED": "1"}

    # -- what the controller knows

    def ask(self, question: Callable[[ControllerClient], Any], client: str = "me") -> Any:
        """The answer of the controller to an asynchronous question."""

        async def run() -> Any:
            config = ClientConfigV1Alpha1.from_file(self.files.folder / f"client-{client}.yaml")
            async with connect_controller(config) as controller:
                return await question(controller)

        return asyncio.run(run())

    def administer(self, order: Callable[[AdminClient], Any]) -> Any:
        """What an administrator does."""
        root = self.files.folder / "client-root.yaml"
        if not root.exists():
            self.files.client("root", "--admin")

        async def run() -> Any:
            async with connect_admin(ClientConfigV1Alpha1.from_file(root)) as admin:
                return await order(admin)

        return asyncio.run(run())

    def leases(self, *, active: bool = True) -> list[LeaseInfo]:
        """Leases, active or all."""
        found: list[LeaseInfo] = self.ask(lambda controller: controller.list_leases(only_active=active))
        return found

    def wait_for(self, matches: Callable[[ExporterInfo], bool], what: str) -> None:
        """Return when an exporter matches."""

        async def poll(controller: ControllerClient) -> None:
            async with asyncio.timeout(SECONDS):
                while not any(matches(one) for one in await controller.list_exporters()):
                    await asyncio.sleep(0.05)

        try:
            self.ask(poll)
        except TimeoutError:
            logs = "\n".join(f"--- {name}\n{self.log(name)}" for name in ("controller", *self.exporters))
            raise AssertionError(f"not within {SECONDS} s: {what}\n{logs}") from None

    def lease(self, name: str) -> LeaseInfo:
        """One lease, also one that has ended."""
        found: LeaseInfo = self.ask(lambda controller: controller.get_lease(name))
        return found

    def wait_released(self, seconds: float = 10.0) -> float:
        """Return, with the seconds it took, when no lease is left."""
        began = time.monotonic()
        while left := self.leases():
            assert time.monotonic() - began < seconds, f"left after {seconds} s: {left}"
            time.sleep(0.05)
        return time.monotonic() - began

    @contextmanager
    def held(self, selector: str, **wish: Any) -> Iterator[str]:
        """Context in which somebody else (a client of the same name) holds an exporter; the lease's name."""
        from jumpstarter.client.controller import LeaseWish

        lease = self.ask(lambda controller: controller.create_lease(LeaseWish(selector=selector, duration=600, **wish)))
        try:
            yield lease.name
        finally:
            self.ask(lambda controller: _end(controller, lease.name))


def wait_until(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> None:
    """Return when `condition` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def _children(pid: int) -> list[int]:
    """All descendants of a process, the youngest first."""
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    children = [int(word) for word in words]
    return [*(one for child in children for one in _children(child)), *children]


async def _end(controller: ControllerClient, name: str) -> None:
    if not (await controller.get_lease(name)).ended:
        await controller.delete_lease(name)
