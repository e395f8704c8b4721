# SPDX-License-Identifier: Apache-2.0
"""The exporter's session: the gate gates, the holder is alone, the end gives back."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from drivers_for_tests import EveryKind

from jumpstarter.client.aio import RemoteSession, connect
from jumpstarter.common.enums import ExporterStatus
from jumpstarter.common.exceptions import (
    ConfigurationError,
    ConnectionError,
    DriverNotFound,
    ExporterGoneError,
    ExporterNotReady,
)
from jumpstarter.exporter.server import TcpListener, UnixListener, serve_session
from jumpstarter.exporter.session import Session
from jumpstarter_driver_composite.driver import Composite
from jumpstarter_driver_power.driver import MockPower, SyncMockPower


def run(body: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 60))  # type: ignore[arg-type]


@asynccontextmanager
async def served(tmp_path: Path, root: Any = None, **kwargs: Any) -> AsyncIterator[tuple[Session, RemoteSession]]:
    root = root or Composite(children={"power": MockPower(), "sync": SyncMockPower(), "test": EveryKind()})
    with Session(root_device=root, name="bench-1", **kwargs) as session:
        async with serve_session(session, UnixListener(str(tmp_path / "s"))) as (path,):
            session.update_status(ExporterStatus.LEASE_READY)
            async with connect(path) as remote:
                yield session, remote


def test_driver_calls_are_refused_unless_the_session_is_ready(tmp_path: Path) -> None:
    async def body() -> None:
        async with served(tmp_path) as (session, remote):
            node = remote.node("test")
            for status in (ExporterStatus.AVAILABLE, ExporterStatus.BEFORE_LEASE_HOOK_FAILED, ExporterStatus.OFFLINE):
                session.update_status(status, "because")
                with pytest.raises(ExporterNotReady, match=f"not ready for driver calls.*{status.name}.*because"):
                    await node.call("echo", 1)
                with pytest.raises(ExporterNotReady):
                    async for _ in node.streamingcall("count", 1):
                        pass
                with pytest.raises(ExporterNotReady):
                    async with node.stream("connect"):
                        pass
                assert await remote.status() == (status, "because")
            for status in (ExporterStatus.BEFORE_LEASE_HOOK, ExporterStatus.AFTER_LEASE_HOOK):
                session.update_status(status)
                assert await node.call("echo", 1) == 1

    run(body)


def test_the_report_lists_parents_before_children_with_names_and_clients(tmp_path: Path) -> None:
    async def body() -> None:
        async with served(tmp_path) as (_, remote):
            assert list(remote.nodes) == ["", "power", "sync", "test"]
            assert remote.name == "bench-1"
            assert remote.node("power").client_class == "jumpstarter_driver_power.client.PowerClient"
            assert remote.node("power").driver_type == "power"
            with pytest.raises(DriverNotFound, match='no driver "nope"; it has: power, sync, test'):
                remote.node("nope")

    run(body)


def test_one_holder_at_a_time_and_the_second_is_told_who(tmp_path: Path) -> None:
    async def body() -> None:
        async with served(tmp_path) as (session, remote), connect(str(tmp_path / "s")) as other:
            async with remote.hold("alice on ws-1"):
                with pytest.raises(ExporterNotReady, match="bench-1 is held by alice on ws-1 since 2"):
                    async with other.hold("bob"):
                        pass
            while session.holder is not None:
                await asyncio.sleep(0.001)
            async with other.hold("bob"):
                assert session.holder is not None and session.holder[0] == "bob"

    run(body)


def test_a_holder_that_has_just_left_is_no_reason_to_refuse_the_next(tmp_path: Path) -> None:
    class Slow(MockPower):
        async def off(self) -> None:
            await asyncio.sleep(0.7)  # longer than the end of a connection takes to be noticed
            await super().off()

    async def body() -> None:
        slow = Slow()
        async with (
            served(tmp_path, Composite(children={"power": slow})) as (_, remote),
            connect(str(tmp_path / "s")) as other,
        ):
            for _ in range(2):
                async with remote.hold("alice"):
                    await remote.node("power").call("on")
                async with other.hold("bob"):
                    assert not slow.switched_on

    run(body)


@pytest.mark.parametrize("power", ["power", "sync"])
def test_what_a_holder_switched_on_is_switched_off_when_it_leaves(tmp_path: Path, power: str) -> None:
    async def body() -> None:
        async with served(tmp_path) as (session, remote):
            driver = session.root_device.children[power]
            async with remote.hold("alice"):
                await remote.node(power).call("on")
                assert driver.switched_on
            while session.holder is not None:
                await asyncio.sleep(0.001)
            assert not driver.switched_on
            assert await remote.node(power).call("status") == "off"

    run(body)


def test_the_end_of_a_session_switches_off_only_what_it_switched_on(tmp_path: Path) -> None:
    calls: list[str] = []

    class Recording(MockPower):
        async def off(self) -> None:
            calls.append(self.labels["n"])

    async def body() -> None:
        on, untouched = Recording(labels={"n": "on"}), Recording(labels={"n": "untouched"})
        root = Composite(children={"on": on, "untouched": untouched})
        async with served(tmp_path, root) as (_, remote):
            await remote.node("on").call("on")

    run(body)
    assert calls == ["on"]


def test_a_supply_is_switched_off_once_when_holder_and_session_end_together(tmp_path: Path) -> None:
    calls: list[str] = []

    class Slow(MockPower):
        async def off(self) -> None:
            calls.append("off")
            await asyncio.sleep(0.05)

    async def body() -> None:
        async with served(tmp_path, Composite(children={"power": Slow()})) as (_, remote):
            async with remote.hold("alice"):
                await remote.node("power").call("on")

    run(body)
    assert calls == ["off"]


def test_power_stays_when_the_configuration_says_so(tmp_path: Path) -> None:
    async def body() -> None:
        root = Composite(children={"power": MockPower()})
        async with served(tmp_path, root, power_off_on_end=False) as (_, remote):
            await remote.node("power").call("on")
        assert root.children["power"].switched_on

    run(body)


def test_every_log_subscriber_sees_every_line(tmp_path: Path) -> None:
    async def body() -> None:
        async with served(tmp_path) as (session, remote):
            log = logging.getLogger("driver.test-of-logs")
            log.setLevel(logging.INFO)

            async def lines(n: int) -> list[str]:
                got = []
                async for entry in remote.logs():
                    if entry.message.startswith("line "):
                        got.append(entry.message)
                        if len(got) == n:
                            break
                return got

            readers = [asyncio.ensure_future(lines(500)) for _ in range(3)]
            while len(session.logs._subscribers) < 3:
                await asyncio.sleep(0.001)
            for i in range(500):
                log.info("line %d", i)
            assert await asyncio.gather(*readers) == [[f"line {i}" for i in range(500)]] * 3

    run(body)


def test_a_slow_log_subscriber_is_told_how_many_lines_it_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jumpstarter.exporter.logging._QUEUE", 10)

    async def body() -> None:
        async with served(tmp_path) as (session, _):
            log = logging.getLogger("driver.test-of-logs")
            log.setLevel(logging.INFO)
            stream = session.logs.follow()
            log.info("first")
            while (await anext(stream)).message != "first":
                pass
            for i in range(25):
                log.info("line %d", i)
            got = [(await anext(stream)).message for _ in range(11)]
            assert got[-1].startswith("15 log lines were dropped")
            await stream.aclose()

    run(body)


def test_the_socket_is_private_and_removed(tmp_path: Path) -> None:
    async def body() -> None:
        async with served(tmp_path):
            assert stat.S_IMODE(os.stat(tmp_path / "s").st_mode) & 0o077 == 0

    run(body)
    assert not (tmp_path / "s").exists()


def test_a_port_in_use_is_one_clear_error(tmp_path: Path) -> None:
    async def body() -> None:
        with Session(root_device=Composite(children={})) as session:
            async with serve_session(session, TcpListener(insecure=True)) as (address,):
                port = int(address.rpartition(":")[2])
                with Session(root_device=Composite(children={})) as second:
                    with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{port}.*in use"):
                        async with serve_session(second, TcpListener(port=port, insecure=True)):
                            pass

    run(body)


def test_tcp_without_tls_needs_to_be_asked_for(tmp_path: Path) -> None:
    async def body() -> None:
        with Session(root_device=Composite(children={})) as session:
            with pytest.raises(ConfigurationError, match="refusing to serve .* without TLS"):
                async with serve_session(session, TcpListener()):
                    pass

    run(body)


def test_a_passphrase_guards_tcp_and_not_the_unix_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jumpstarter.exporter.server._WRONG_PASSPHRASE_DELAY", 0.01)

    async def body() -> None:
        root = Composite(children={"test": EveryKind()})
        with Session(root_device=root) as session:
            session.update_status(ExporterStatus.LEASE_READY)
            listeners = (TcpListener(insecure=True, passphrase="žába"), UnixListener(str(tmp_path / "s")))
            async with serve_session(session, *listeners) as (tcp, path):
                async with connect(path) as remote:
                    assert await remote.node("test").call("echo", 1) == 1
                for wrong in (None, "zaba", ""):
                    with pytest.raises(ConnectionError, match="refused us: missing or wrong passphrase"):
                        async with connect(tcp, insecure=True, passphrase=wrong):
                            pass

    run(body)


def test_a_right_passphrase_opens_calls_and_streams(tmp_path: Path) -> None:
    async def body() -> None:
        with Session(root_device=Composite(children={"test": EveryKind()})) as session:
            session.update_status(ExporterStatus.LEASE_READY)
            async with (
                serve_session(session, TcpListener(insecure=True, passphrase="secret")) as (tcp,),
                connect(tcp, insecure=True, passphrase="secret") as remote,
            ):
                assert await remote.node("test").call("echo", 1) == 1
                async with remote.node("test").stream() as stream:
                    await stream.send(b"x")
                    assert await stream.receive() == b"x"

    run(body)


def test_the_exporter_process_serves_and_ends_with_its_lifeline(tmp_path: Path) -> None:
    import subprocess
    import sys

    config = tmp_path / "exporter.yaml"
    config.write_text(
        "apiVersion: jumpstarter.dev/v1alpha1\nkind: ExporterConfig\nmetadata: {name: child}\n"
        "export:\n  power: {type: jumpstarter_driver_power.driver.MockPower}\n"
    )
    socket = tmp_path / "child.sock"
    argv = [sys.executable, "-m", "jumpstarter.exporter", "--config", str(config), "--listen", f"unix:{socket}"]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline().startswith('READY {"socket"')

            async def body() -> None:
                async with connect(str(socket)) as remote:
                    await remote.node("power").call("on")

            run(body)
            _, errors = child.communicate(timeout=60)  # closes the lifeline
            assert child.returncode == 0, errors
            assert 'driver "power" switched off' in errors
            assert not socket.exists()
        finally:
            child.kill()


def test_a_killed_exporter_is_noticed_by_the_call_that_runs(tmp_path: Path) -> None:
    import subprocess
    import sys

    config = tmp_path / "exporter.yaml"
    config.write_text(
        "apiVersion: jumpstarter.dev/v1alpha1\nkind: ExporterConfig\nmetadata: {name: child}\n"
        "export:\n  test: {type: drivers_for_tests.EveryKind}\n"
    )
    socket = tmp_path / "child.sock"
    argv = [sys.executable, "-m", "jumpstarter.exporter", "--config", str(config), "--listen", f"unix:{socket}"]
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).parent))
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()

            async def body() -> None:
                async with connect(str(socket)) as remote:
                    node = remote.node("test")
                    items = node.streamingcall("blocking_generator")
                    assert await anext(items) == "started"
                    child.kill()
                    with pytest.raises(ExporterGoneError, match="went away"):
                        await anext(items)

            run(body)
        finally:
            child.kill()
