# SPDX-License-Identifier: Apache-2.0
"""Protects groups of drivers and their aliases: names, identity, life cycle, and what a wrong reference says."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from click.testing import CliRunner

from jumpstarter.client import DriverClient
from jumpstarter.common.exceptions import ConfigurationError, MissingDriverError
from jumpstarter.common.utils import serve
from jumpstarter.driver import Driver, export, exportstream
from jumpstarter_driver_composite.driver import Composite, Proxy
from jumpstarter_driver_network.driver import EchoNetwork
from jumpstarter_driver_power.driver import MockPower


@dataclass(kw_only=True)
class Counting(MockPower):
    """Counts how often it is reset and closed."""

    resets: int = 0
    closes: int = 0

    def reset(self) -> None:
        super().reset()
        self.resets += 1

    def close(self) -> None:
        self.closes += 1
        super().close()


@dataclass(kw_only=True)
class Board(Driver):
    """Uses the methods of a child, which may be an alias."""

    ended: list[str] = field(default_factory=list)

    @classmethod
    def client(cls) -> str:
        return "jumpstarter_driver_composite.client.CompositeClient"

    @export
    async def boot(self) -> str:
        await self.children["power"].on()
        return self.children["power"].status()

    @exportstream
    @asynccontextmanager
    async def connect(self):
        async with self.children["serial"].connect() as stream:
            yield stream


def test_children_are_attributes_to_any_depth() -> None:
    tree = Composite(children={"a": Composite(children={"power": MockPower()}), "power": MockPower()})
    with serve(tree) as client:
        client.a.power.on()
        assert client.a.power.status() == "on"
        assert client.power.status() == "off"
        assert client.a.power.path == "a.power"
        assert "power" in dir(client)
        with pytest.raises(AttributeError, match="no attribute 'serial'; its drivers are: a, power"):
            _ = client.serial


def test_alias_of_a_leaf_and_of_a_group_reach_the_same_driver() -> None:
    power = MockPower()
    tree = Composite(
        children={
            "board": Composite(children={"supply": Composite(children={"power": power})}),
            "power": Proxy(ref="board.supply.power"),
            "group": Proxy(ref="board.supply"),
            "through": Proxy(ref="group.power"),
            "again": Proxy(ref="through"),
        }
    )
    with serve(tree) as client:
        client.power.on()
        assert client.board.supply.power.status() == "on"
        assert client.group.power.status() == "on"
        assert client.through.status() == client.again.status() == "on"
        assert client.power.uuid == client.board.supply.power.uuid == power.uuid
        assert client.power.name == "power" and client.again.name == "again"


def test_the_target_of_aliases_is_reset_and_closed_once() -> None:
    power = Counting()
    tree = Composite(children={"power": power, "one": Proxy(ref="power"), "two": Proxy(ref="one")})
    with serve(tree) as client:
        client.two.on()
        assert power.resets == 1
    assert power.closes == 1


def test_a_parent_calls_and_streams_through_an_alias() -> None:
    board = Board(children={"power": Proxy(ref="power"), "serial": Proxy(ref="echo")})
    with serve(Composite(children={"board": board, "power": MockPower(), "echo": EchoNetwork()})) as client:
        assert client.board.call("boot") == "on"
        with client.board.stream() as stream:
            stream.send(b"hello")
            assert stream.receive() == b"hello"


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        (
            "nowhere",
            r'proxy driver "alias" \(ref "nowhere"\) references a nonexistent driver: the exporter has no "nowhere"',
        ),
        ("board.serial", r'"board" has no "serial" \(it has power\)'),
        ("board.power.x", r'"board.power" has no "x" \(it has nothing\)'),
    ],
)
def test_wrong_references_name_the_alias_and_the_missing_part(ref: str, message: str) -> None:
    tree = Composite(children={"board": Composite(children={"power": MockPower()}), "alias": Proxy(ref=ref)})
    with pytest.raises(ConfigurationError, match=message):
        tree.enumerate()


@pytest.mark.parametrize("ref", ["", ".", "a..b", "a."])
def test_a_reference_that_is_no_path_is_refused_at_once(ref: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a dotted path"):
        Proxy(ref=ref)


def test_circles_of_aliases_are_found() -> None:
    tree = Composite(children={"a": Proxy(ref="b"), "b": Proxy(ref="c"), "c": Proxy(ref="a")})
    with pytest.raises(ConfigurationError, match="leads back to itself"):
        tree.enumerate()
    with pytest.raises(ConfigurationError, match="leads back to itself"):
        Composite(children={"a": Proxy(ref="a")}).enumerate()


def test_an_alias_of_a_group_that_contains_it_is_found() -> None:
    tree = Composite(children={"group": Composite(children={"power": MockPower(), "loop": Proxy(ref="group")})})
    with pytest.raises(ConfigurationError, match="leads to a driver that contains it"):
        tree.enumerate()


def test_an_alias_used_too_early_says_so() -> None:
    with pytest.raises(ConfigurationError, match="before the exporter's driver tree was complete"):
        Proxy(ref="power").connect()


def test_commands_of_children_and_log_level() -> None:
    tree = Composite(children={"power": MockPower(), "echo": EchoNetwork(), "alias": Proxy(ref="power")})
    with serve(tree) as client:
        run = CliRunner()
        assert sorted(client.cli().commands) == ["alias", "echo", "power"]
        assert run.invoke(client.cli(), ["--log-level", "debug", "alias", "on"], catch_exceptions=False).exit_code == 0
        assert run.invoke(client.cli(), ["power", "status"], catch_exceptions=False).output == "on\n"
        assert run.invoke(client.cli(), ["--log-level", "loud", "power", "on"]).exit_code == 2


class NoCli(DriverClient):
    """A client without commands."""


@dataclass(kw_only=True)
class Mute(Driver):
    @classmethod
    def client(cls) -> str:
        return f"{__name__}.NoCli"


@dataclass(kw_only=True)
class Foreign(Driver):
    @classmethod
    def client(cls) -> str:
        return "not_installed_here.client.Client"


def test_drivers_without_commands_or_without_client_are_left_out() -> None:
    with serve(Composite(children={"mute": Mute(), "foreign": Foreign()})) as client:
        assert client.cli().commands == {}
        with pytest.raises(MissingDriverError, match="not_installed_here"):
            client.foreign.call("anything")
