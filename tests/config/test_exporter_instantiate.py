# SPDX-License-Identifier: Apache-2.0
"""An exporter's file becomes drivers, or one line that says where it is wrong; and then nothing was switched on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jumpstarter.common.exceptions import ConfigurationError

Build = Callable[..., Any]
SAMPLE = "config_samples.Sample"


def test_values_arrive_with_the_types_of_the_fields(build: Build, sample: Any) -> None:
    config = {
        "url": 5,  # a number in YAML where text is meant
        "baudrate": "9600",
        "ratio": 2,
        "mode": "slow",
        "image": "/tmp/x.img",
        "ports": {"ssh": {"number": 22}},
        "flags": ["a"],
    }
    driver = build({"s": {"type": SAMPLE, "config": config}}).children["s"]
    assert driver.url == "5"
    assert driver.baudrate == 9600 and isinstance(driver.baudrate, int)
    assert driver.mode is sample.Mode.SLOW
    assert driver.image == Path("/tmp/x.img")
    assert driver.ports == {"ssh": sample.Port(number=22)}
    assert driver.flags == ["a"]


def test_ids_are_the_same_in_each_run_and_differ_by_path(build: Build) -> None:
    tree = {"a": {"type": SAMPLE, "config": {"url": "x"}}, "p": {"type": "config_samples.Parent"}}
    first, second = build(tree), build(tree)
    ids = [driver.uuid for _, _, _, driver in first.enumerate()]
    assert ids == [driver.uuid for _, _, _, driver in second.enumerate()]
    assert len(set(ids)) == 4  # root, a, p and p's own child


def test_groups_aliases_and_texts(build: Build) -> None:
    root = build(
        {
            "group": {"children": {"s": {"type": SAMPLE, "config": {"url": "x"}, "description": "the one"}}},
            "empty": {},
            "alias": {"ref": "group.s"},
            "inner": {"ref": "p.inner"},
            "p": {"type": "config_samples.Parent", "methods_description": {"on": "go"}},
        },
        description="a board",
    )
    assert root.description == "a board"
    assert root.children["group"].children["s"].description == "the one"
    assert root.children["empty"].children == {}
    assert root.children["p"].methods_description == {"on": "go"}
    names = {name: uuid for uuid, parent, name, _ in root.enumerate() if parent is root}
    assert names["alias"] == root.children["group"].children["s"].uuid
    assert names["inner"] == root.children["p"].children["inner"].uuid


GOOD = {"type": SAMPLE, "config": {"url": "first"}}

BROKEN = {
    "unknown package": (
        {"type": "jumpstarter_driver_nowhere.driver.X"},
        ["driver bad", "jumpstarter_driver_nowhere", "not installed", "jmp driver list"],
    ),
    "unknown class": ({"type": "config_samples.Sampel"}, ["driver bad", 'no class "Sampel"']),
    "typo of a registered driver": (
        {"type": "jumpstarter_driver_power.driver.MockPowr"},
        ['did you mean "jumpstarter_driver_power.driver.MockPower"?'],
    ),
    "empty type": ({"type": ""}, ["driver bad", "type: is empty"]),
    "no dotted path": ({"type": "Sample"}, ["driver bad", "not a dotted path"]),
    "not a driver": ({"type": "config_samples.NotADriver"}, ["driver bad", "is not a Driver", "derives from"]),
    "truth value for a size": (
        {"type": "jumpstarter_driver_storage.driver.FileFlasher", "config": {"path": "x", "size": True}},
        ["driver bad", "config.size: must be a number, not true"],
    ),
    "no class at all": ({"type": "os.system"}, ["driver bad", "is not a class", "derives from jumpstarter.driver"]),
    "unknown field": (
        {"type": SAMPLE, "config": {"url": "x", "baudrat": 1}},
        ["driver bad", "config.baudrat", 'did you mean "baudrate"?'],
    ),
    "field that is no parameter": (
        {"type": SAMPLE, "config": {"url": "x", "hidden": 1}},
        ["config.hidden", "no such field"],
    ),
    "missing field": ({"type": SAMPLE}, ["driver bad", "config.url", "is required by Sample"]),
    "wrong type": (
        {"type": SAMPLE, "config": {"url": "x", "baudrate": "fast"}},
        ["driver bad", "config.baudrate", "integer", "'fast'"],
    ),
    "wrong choice": ({"type": SAMPLE, "config": {"url": "x", "mode": "warp"}}, ["config.mode", "'fast' or 'slow'"]),
    "wrong deep inside": (
        {"type": SAMPLE, "config": {"url": "x", "ports": {"ssh": {"number": "many"}}}},
        ["config.ports", "ssh.number", "integer"],
    ),
    "children in config": ({"type": SAMPLE, "config": {"url": "x", "children": {}}}, ["beside config:"]),
    "ref to nowhere": ({"ref": "first.deeper"}, ["bad", "first", "deeper"]),
    "ref to itself": ({"ref": "bad"}, ["driver bad", "leads back to itself"]),
    "config for a group": ({"config": {"a": 1}}, ["driver bad", "without type:"]),
    "deep down": (
        {"children": {"x": {"children": {"y": {"type": SAMPLE, "config": {}}}}}},
        ["driver bad.x.y", "config.url"],
    ),
}


@pytest.mark.parametrize(("entry", "expected"), BROKEN.values(), ids=BROKEN.keys())
def test_one_line_says_what_is_wrong_and_nothing_stays_open(
    build: Build, sample: Any, tmp_path: Path, entry: dict[str, Any], expected: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build({"first": GOOD, "bad": entry})
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path / "board.yaml") in message
    for part in expected:
        assert part in message
    made = sample.EVENTS.count(("made", "first"))
    assert made == sample.EVENTS.count(("closed", "first"))
    if "ref" not in entry:  # only a reference into a driver's own children needs the drivers to be checked
        assert made == 0


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("denied", ["no permission", "/dev/ttyS99", "group"]),
        ("busy", ["Address already in use"]),
        ("bug", ["KeyError", "oops"]),
    ],
)
def test_a_constructor_that_fails_closes_what_was_built(
    build: Build, sample: Any, tmp_path: Path, url: str, expected: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build({"first": GOOD, "bad": {"type": SAMPLE, "config": {"url": url}}})
    message = str(caught.value)
    assert "\n" not in message
    assert f"{tmp_path / 'board.yaml'}: driver bad: " in message
    for part in expected:
        assert part in message
    assert ("closed", "first") in sample.EVENTS


def test_the_extra_to_install_is_named(build: Build) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build({"u": {"type": "jumpstarter_driver_uboot.not_installed.Uboot"}})
    assert "pip install 'jumpstarter-lab[uboot]'" in str(caught.value)
