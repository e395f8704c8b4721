# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory plugin makes hosts of a lab's exporters, and plays over them lease each by its name."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

import pytest
import yaml
from lab_stage import PlayedLab, running_exporter


def source(lab: PlayedLab, name: str = "lab.jumpstarter.yml", **options: Any) -> str:
    """An inventory file for the plugin."""
    path = lab.stage.folder / name
    given = {"plugin": "jumpstarter.lab.exporters", "client_config": str(lab.admin), **options}
    path.write_text(yaml.safe_dump(given))
    return str(path)


def listed(lab: PlayedLab, inventory: str, rc: int = 0) -> tuple[dict[str, Any], str]:
    """What `ansible-inventory --list` makes of it, and what it says on stderr."""
    command = [sys.executable, "-m", "ansible", "inventory", "-i", inventory, "--list"]
    done = subprocess.run(
        command, env=lab.stage.env, cwd=lab.stage.folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == rc, done.stderr
    return json.loads(done.stdout, object_hook=_plain), done.stderr


def _plain(value: dict[str, Any]) -> Any:
    """ansible-inventory marks every string that is no template of ours."""
    return value["__ansible_unsafe"] if set(value) == {"__ansible_unsafe"} else value


def test_every_exporter_is_a_host_with_labels_drivers_and_groups(played_lab: PlayedLab) -> None:
    played_lab.files.exporter("lost", "-l", "board=rpi4")
    with running_exporter(played_lab.files, "here", "-l", "board=rpi4", "-l", "rack=a"):
        found, _ = listed(
            played_lab,
            source(
                played_lab,
                groups_from_labels=["board", "rack"],
                groups={"flashable": "'storage' in jumpstarter_drivers"},
                compose={"ansible_connection": "'jumpstarter.lab.console'"},
            ),
        )
    hosts = found["_meta"]["hostvars"]
    assert set(hosts) == {"here", "lost"}
    here = hosts["here"]
    assert here["jumpstarter_exporter"] == "here" and here["jumpstarter_client_config"] == str(played_lab.admin)
    assert here["jumpstarter_labels"]["rack"] == "a"
    assert here["jumpstarter_drivers"]["power"] == "jumpstarter_driver_power.client.PowerClient"
    assert (here["jumpstarter_online"], here["jumpstarter_lease"]) == (True, None)
    assert here["ansible_connection"] == "jumpstarter.lab.console"
    assert hosts["lost"]["jumpstarter_online"] is False
    assert sorted(found["board_rpi4"]["hosts"]) == ["here", "lost"]
    assert found["rack_a"]["hosts"] == found["flashable"]["hosts"] == ["here"]


def test_filters_leave_out_what_is_offline_held_or_labelled_otherwise(played_lab: PlayedLab) -> None:
    played_lab.files.exporter("lost", "-l", "board=rpi4")
    with ExitStack() as exporters:
        for name, board in (("free", "rpi4"), ("held", "rpi4"), ("other", "imx8")):
            exporters.enter_context(running_exporter(played_lab.files, name, "-l", f"board={board}"))

        def names(**options: Any) -> list[str]:
            return sorted(listed(played_lab, source(played_lab, **options))[0]["_meta"]["hostvars"])

        assert names(selector="board=imx8") == ["other"]
        assert names(only_online=True) == ["free", "held", "other"]
        lease = ["create", "lease", "-n", "held", "--duration", "1h", "--wait", "--client-config", played_lab.admin]
        subprocess.run([sys.executable, "-m", "jumpstarter_cli.jmp", *map(str, lease)], check=True, timeout=120)
        assert names(only_available=True, selector="board=rpi4") == ["free"]
        held = listed(played_lab, source(played_lab))[0]["_meta"]["hostvars"]["held"]
        assert held["jumpstarter_lease_client"] == "admin"
        assert held["jumpstarter_lease"] and held["jumpstarter_lease_ends"]


def test_a_play_over_the_inventory_leases_each_exporter_and_gives_it_back(played_lab: PlayedLab) -> None:
    with ExitStack() as exporters:
        for name in ("one", "two"):
            exporters.enter_context(running_exporter(played_lab.files, name, "-l", "board=mock"))
        inventory = source(played_lab, groups={"duts": True})
        playbook = played_lab.stage.write(
            [
                {
                    "hosts": "duts",
                    "gather_facts": False,
                    "tasks": [
                        {"name": "On", "jumpstarter.lab.power": {"state": "on"}},
                        {"name": "Who", "jumpstarter.lab.lease_info": {}},
                    ],
                }
            ]
        )
        played = played_lab.stage.run_playbook(playbook, "-i", inventory)
        assert played.rc == 0, played.output
        assert {played.result(host)["lease"]["exporter"] for host in ("one", "two")} == {"one", "two"}
        hosts = listed(played_lab, inventory)[0]["_meta"]["hostvars"]
        assert {host["jumpstarter_lease"] for host in hosts.values()} == {None}


def test_a_cache_answers_when_the_controller_is_gone(played_lab: PlayedLab) -> None:
    played_lab.files.exporter("board")
    cached = source(
        played_lab,
        cache=True,
        cache_plugin="ansible.builtin.jsonfile",
        cache_connection=str(played_lab.stage.folder / "cache"),
    )
    assert set(listed(played_lab, cached)[0]["_meta"]["hostvars"]) == {"board"}
    config = yaml.safe_load(played_lab.admin.read_text())
    played_lab.admin.write_text(yaml.safe_dump({**config, "endpoint": "127.0.0.1:1"}))
    assert set(listed(played_lab, cached)[0]["_meta"]["hostvars"]) == {"board"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"client_config": "missing.yaml"}, "there is no file"),
        ({"client": "nightly"}, "client and client_config are both set"),
        ({"selector": "board in rpi4"}, "board in rpi4"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_that_names_the_file(
    played_lab: PlayedLab, options: dict[str, Any], said: str
) -> None:
    inventory = source(played_lab, **options)
    found, stderr = listed(played_lab, inventory)
    assert "hostvars" not in found["_meta"] or not found["_meta"]["hostvars"]
    assert said in " ".join(stderr.split()) and "jumpstarter.yml" in stderr
