# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules that bring a lab into a state: idempotent, honest in check mode, with diff, and no token in any result."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab_stage import PlayedLab

pytestmark = pytest.mark.usefixtures("played_lab")


def task(module: str, **options: Any) -> dict[str, Any]:
    return {"name": module, f"jumpstarter.lab.{module}": options}


def run(lab: PlayedLab, *tasks: dict[str, Any], args: tuple[str, ...] = ("--diff",), rc: int = 0) -> list[Any]:
    """The results of tasks on localhost."""
    played = lab.stage.run(list(tasks), *args)
    assert played.rc == rc, played.output
    return [played.result("localhost", number) for number in range(len(played.tasks))]


@pytest.mark.parametrize(
    ("module", "result", "extra", "changed"),
    [
        ("client", "lab_client", {"administrator": True}, {"administrator": False}),
        ("exporter", "exporter", {"enabled": False}, {"enabled": True}),
    ],
)
def test_a_client_or_exporter_is_made_changed_and_removed_once(
    played_lab: PlayedLab, tmp_path: Path, module: str, result: str, extra: dict[str, Any], changed: dict[str, Any]
) -> None:
    save = tmp_path / "new" / f"{module}.yaml"
    wanted = {"name": "one", "labels": {"board": "rpi4", "usb": True}, "save": str(save), **extra}
    would, *_ = run(played_lab, task(module, **wanted), args=("--check", "--diff"))
    assert would["changed"] and would["diff"]["after"]["labels"] == {"board": "rpi4", "usb": "true"}
    assert not save.parent.exists()

    made, again, other, gone, absent = run(
        played_lab,
        task(module, **wanted),
        task(module, **wanted),
        task(module, name="one", labels={"board": "imx8"}, **changed),
        task(module, name="one", state="absent"),
        task(module, name="one", state="absent"),
    )
    assert made["changed"] and made["saved"] == str(save) and made["diff"]["before"] == {}
    assert not again["changed"] and "saved" not in again
    assert other["changed"] and other["diff"]["before"]["labels"] == {"board": "rpi4", "usb": "true"}
    assert other[result] == {"name": "one", "labels": {"board": "imx8"}, "username": "", **changed}
    assert gone["changed"] and gone["diff"]["after"] == {}
    assert not absent["changed"]

    assert stat.S_IMODE(save.stat().st_mode) == 0o600
    token = yaml.safe_load(save.read_text())["token"]
    assert token and token not in json.dumps([made, again])


def test_a_file_whose_token_was_revoked_gets_a_new_one(played_lab: PlayedLab, tmp_path: Path) -> None:
    save = tmp_path / "nightly.yaml"
    wanted = {"name": "nightly", "save": str(save), "allow": ["jumpstarter_driver_*"]}
    run(played_lab, task("client", **wanted))
    first = yaml.safe_load(save.read_text())

    would, *_ = run(played_lab, task("client", name="nightly", rotate=True), args=("--check",))
    assert (would["changed"], would["revoked"]) == (True, 1)
    revoked, renewed, kept = run(
        played_lab, task("client", name="nightly", rotate=True), task("client", **wanted), task("client", **wanted)
    )
    assert (revoked["revoked"], renewed["changed"], kept["changed"]) == (1, True, False)
    second = yaml.safe_load(save.read_text())
    assert second["token"] != first["token"]
    assert {**second, "token": ""} == {**first, "token": ""}

    rotated, *_ = run(played_lab, task("client", **wanted, rotate=True))
    assert (rotated["changed"], rotated["revoked"]) == (True, 1)


def test_an_administrator_replaces_its_own_token_and_goes_on(played_lab: PlayedLab) -> None:
    own = played_lab.files.client("root", "--admin")
    replaced, made = run(
        played_lab,
        task("client", name="root", client_config=str(own), save=str(own), rotate=True),
        task("client", name="late", client_config=str(own)),
    )
    assert replaced["changed"] and made["changed"]


def test_an_exporter_file_keeps_its_drivers(played_lab: PlayedLab, tmp_path: Path) -> None:
    save = tmp_path / "board.yaml"
    save.write_text(yaml.safe_dump({"export": {"power": {"type": "jumpstarter_driver_power.driver.MockPower"}}}))
    run(played_lab, task("exporter", name="board", save=str(save)))
    written = yaml.safe_load(save.read_text())
    assert written["export"]["power"]["type"].endswith("MockPower")
    assert written["metadata"] == {"namespace": "default", "name": "board"} and written["endpoint"]


def test_a_file_of_somebody_else_is_not_written_over(played_lab: PlayedLab, tmp_path: Path) -> None:
    save = tmp_path / "eva.yaml"
    run(played_lab, task("client", name="eva", save=str(save)))
    before = save.read_text()
    refused = run(played_lab, task("client", name="tom", save=str(save)), rc=2)[0]
    assert 'belongs to client "eva"' in refused["msg"]
    assert save.read_text() == before


def test_a_policy_is_made_changed_and_removed_once(played_lab: PlayedLab) -> None:
    rules = [{"clients": "team = platform", "priority": 10, "maximum_duration": "8h"}, {"spot": True}]
    wanted = {"name": "rpi4", "exporters": "board=rpi4", "rules": rules}
    made, again, other, gone, absent = run(
        played_lab,
        task("access_policy", **wanted),
        task("access_policy", **wanted),
        task("access_policy", **{**wanted, "rules": rules[1:]}),
        task("access_policy", name="rpi4", state="absent"),
        task("access_policy", name="rpi4", state="absent"),
    )
    assert [made["changed"], again["changed"], other["changed"]] == [True, False, True]
    assert made["policy"]["rules"][0]["maximum_duration"] == 8 * 3600
    assert other["diff"]["before"]["rules"] == made["policy"]["rules"]
    assert [gone["changed"], absent["changed"]] == [True, False]


def test_a_client_that_is_no_administrator_is_told_so(played_lab: PlayedLab) -> None:
    plain = played_lab.files.client("plain")
    refused = run(played_lab, task("client", name="x", client_config=str(plain)), rc=2)[0]
    assert refused["msg"].startswith("localhost: client: ") and "administrator" in refused["msg"]
