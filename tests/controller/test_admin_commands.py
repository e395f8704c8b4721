# SPDX-License-Identifier: Apache-2.0
"""`jumpstarter-controller admin`: directly in the database, without an administrator."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from controller_harness import LabFiles, run_cli

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_controller.errors import Refused

LAB = """
clients: {alice: {labels: {team: a}, username: "corp:alice", administrator: true}}
exporters: {bench-1: {labels: {board: rpi4}, enabled: false}}
policies:
  team-a:
    exporters: board=rpi4
    rules:
      - {clients: team=a, priority: 10, maximumDuration: 2h, description: team a}
      - {clients: "", spot: true}
"""


@pytest.fixture
def out(capsys: pytest.CaptureFixture[str]) -> Any:
    def read(lab: LabFiles, *argv: str) -> list[dict[str, Any]]:
        capsys.readouterr()
        command(lab, *argv)
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return read


def command(lab: LabFiles, *argv: str) -> None:
    run_cli("admin", *argv, "--config", lab.config)


def test_a_file_is_imported_as_often_as_one_likes(lab: LabFiles, tmp_path: Path, out: Any) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(LAB)
    for _ in range(2):
        command(lab, "import", str(file))
        [alice] = out(lab, "list", "clients")
        assert alice == {
            "name": "alice",
            "labels": {"team": "a"},
            "username": "corp:alice",
            "administrator": True,
            "leases": [],
        }
        [bench] = out(lab, "list", "exporters")
        assert (bench["labels"], bench["enabled"]) == ({"board": "rpi4"}, False)
        [policy] = out(lab, "list", "policies")
        assert [rule["maximum_duration"] for rule in policy["rules"]] == [7200.0, None]
    made = [entry for entry in lab.audit() if entry["action"] == "client created"]
    assert [entry["actor"] for entry in made] == ["administrator"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clients: {Alice: {}}", 'client name "Alice"'),
        ("clients: {alice: {}, bob: {username: x}, eve: {username: x}}", 'username "x" is that of client default/bob'),
        ("policies: {p: {rules: []}}", "policy p: it needs 1 to 100 rules"),
        ("clients: {alice: {role: x}}", r"lab\.yaml: clients\.alice\.role: Extra inputs"),
        ("policies: {p: {rules: [{maximumDuration: soon}]}}", r"policies\.p\.rules\.0\.maximumDuration: expected"),
        ("clients: [", "is not YAML"),
    ],
)
def test_a_file_with_a_mistake_changes_nothing(
    lab: LabFiles, tmp_path: Path, out: Any, text: str, message: str
) -> None:
    (tmp_path / "lab.yaml").write_text(text)
    with pytest.raises((Refused, ConfigurationError), match=message):
        command(lab, "import", str(tmp_path / "lab.yaml"))
    assert out(lab, "list", "clients") == []


def test_clients_without_a_token_and_their_files(lab: LabFiles, out: Any) -> None:
    command(lab, "create", "client", "alice", "--oidc-username", "corp:alice")
    assert out(lab, "tokens", "client", "alice") == []
    file = lab.client("bob", "--admin")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    [token] = out(lab, "tokens", "client", "bob")
    assert token["revoked"] is None
    command(lab, "revoke", "client", "bob", "--id", token["id"])
    [token] = out(lab, "tokens", "client", "bob")
    assert token["revoked"] is not None
    names = {client["name"]: client["administrator"] for client in out(lab, "list", "clients")}
    assert names == {"alice": False, "bob": True}


def test_a_token_is_not_made_when_its_file_cannot_be(lab: LabFiles, out: Any) -> None:
    with pytest.raises(click.UsageError, match="has no endpoint"):
        command(lab, "create", "client", "alice", "--save", str(lab.folder / "alice.yaml"))
    assert out(lab, "list", "clients") == []


def test_labels_are_added_and_removed(lab: LabFiles, out: Any) -> None:
    command(lab, "create", "exporter", "e0", "-l", "board=x", "-l", "rack=1")
    command(lab, "update", "exporter", "e0", "-l", "rack=2", "-l", "new=yes", "--unlabel", "board", "--disable")
    [exporter] = out(lab, "list", "exporters")
    assert (exporter["labels"], exporter["enabled"]) == ({"rack": "2", "new": "yes"}, False)
    with pytest.raises(click.UsageError, match="exporters --enable/--disable"):
        command(lab, "update", "client", "e0", "--enable")
    command(lab, "delete", "exporter", "e0")
    assert out(lab, "list", "exporters") == []
    with pytest.raises(Refused, match="exporter default/e0 does not exist"):
        command(lab, "delete", "exporter", "e0")


def test_policies_get_rules_one_by_one(lab: LabFiles, out: Any) -> None:
    command(lab, "create", "policy", "p", "--exporters", "a=b", "--clients", "t=1", "--spot", "--description", "one")
    command(lab, "create", "policy", "p", "--append", "--clients", "t=2", "--maximum-duration", "2h", "--priority", "5")
    [policy] = out(lab, "list", "policies")
    assert policy["exporters"] == "a=b"
    assert [(rule["clients"], rule["spot"], rule["description"]) for rule in policy["rules"]] == [
        ("t=1", True, "one"),
        ("t=2", False, ""),
    ]
    command(lab, "delete", "policy", "p")
    assert out(lab, "list", "policies") == []
    with pytest.raises(Refused, match="policy default/q does not exist"):
        command(lab, "create", "policy", "q", "--append")


def test_the_log_is_filtered(lab: LabFiles, out: Any) -> None:
    for name in ("alice", "bob"):
        command(lab, "create", "client", name)
    command(lab, "create", "exporter", "e0", "--namespace", "other")
    assert [entry["client"] for entry in out(lab, "audit", "--action", "created", "--namespace", "default")] == [
        "alice",
        "bob",
    ]
    assert [entry["action"] for entry in out(lab, "audit", "--client", "bob")] == ["client created"]
    assert [entry["namespace"] for entry in out(lab, "audit", "--exporter", "e0")] == ["other"]
    assert out(lab, "audit", "--until", "2001-01-01") == []
    assert len(out(lab, "audit", "--since", "2001-01-01", "-n", "2")) == 2


def test_no_secret_is_in_the_log(lab: LabFiles) -> None:
    token = yaml.safe_load(lab.client("alice").read_text())["token"]
    text = json.dumps(lab.audit())
    assert "alice" in text
    assert not any(part in text for part in token.split("."))
    assert "PRIVATE KEY" not in text
