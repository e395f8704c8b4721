# SPDX-License-Identifier: Apache-2.0
"""`jmp admin` against a controller process: what it shows, what it changes, what it writes, and who may."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_harness import Cli, only_error
from controller_harness import LabFiles

SECRET = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+")


@pytest.fixture(scope="module")
def plain_client(lab: LabFiles) -> Path:
    """A client that is no administrator."""
    return lab.client("nobody")


def run(cli: Cli, client: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """`jmp admin` as this client; it never shows a token."""
    result = cli.jmp("admin", *args, env={"JMP_CLIENT_CONFIG": str(client)})
    assert not SECRET.search(result.stdout + result.stderr), result
    return result


def admin(cli: Cli, client: Path, *args: str | Path) -> str:
    """The output of a command that succeeds."""
    result = run(cli, client, *args)
    assert result.returncode == 0, result
    return result.stdout


def data(cli: Cli, client: Path, *args: str) -> Any:
    return json.loads(admin(cli, client, *args, "-o", "json"))


def whoami(cli: Cli, path: Path) -> str:
    """Who the configuration at `path` is to the lab; "" when it is nobody."""
    result = cli.jmp("auth", "whoami", "--client-config", path, "-o", "name")
    return result.stdout.strip() if result.returncode == 0 else ""


# --- clients -----------------------------------------------------------------------------------------------------


def test_a_client_from_its_creation_to_its_end(cli: Cli, root: Path) -> None:
    path = cli.directory / "amy.yaml"
    made = admin(cli, root, "create", "client", "amy", "-l", "team=ci", "-l", "x=1", "--out", path, "--allow", "a.*")
    assert made == f'client "amy" created; configuration {path}\n'
    assert path.stat().st_mode & 0o777 == 0o600
    config = yaml.safe_load(path.read_text())
    assert config["metadata"] == {"namespace": "default", "name": "amy"} and config["drivers"] == {"allow": ["a.*"]}
    assert whoami(cli, path) == "amy"

    assert (
        admin(cli, root, "update", "client", "amy", "-l", "team=qa", "--remove-label", "x") == 'client "amy" updated\n'
    )
    (client,) = data(cli, root, "get", "client", "amy")["clients"]
    assert client["labels"] == {"team": "qa"} and not client["administrator"] and client["created"].endswith("Z")
    assert admin(cli, root, "get", "clients", "-l", "team=qa", "-o", "name") == "amy\n"
    lines = admin(cli, root, "get", "clients", "amy").splitlines()
    assert lines[0].split() == ["NAME", "ADMINISTRATOR", "USERNAME", "CREATED", "LABELS"]
    assert re.fullmatch(r"amy +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +team=qa", lines[1])

    assert admin(cli, root, "delete", "client", "amy") == 'client "amy" deleted\n'
    assert whoami(cli, path) == ""
    assert 'client "amy"' in only_error(run(cli, root, "get", "client", "amy"))


def test_an_administrator_can_be_made_and_unmade(cli: Cli, root: Path) -> None:
    path = cli.directory / "chief.yaml"
    admin(cli, root, "create", "client", "chief", "--administrator", "--out", path)
    assert "chief" in admin(cli, path, "get", "clients", "-o", "name").split()
    admin(cli, root, "update", "client", "chief", "--no-administrator")
    assert "not an administrator" in only_error(run(cli, path, "get", "clients"))


def test_others_may_do_nothing_of_it(cli: Cli, root: Path, plain_client: Path) -> None:
    for args in (
        ["get", "clients"],
        ["get", "audit"],
        ["get", "token", "client", "root"],
        ["create", "client", "mallory", "--administrator"],
        ["update", "client", "nobody", "--administrator"],
        ["delete", "client", "root", "--force"],
        ["rotate", "client", "root", "--out", str(cli.directory / "root.yaml")],
        ["create", "policy", "all"],
        ["end", "lease", "x"],
    ):
        assert "not an administrator" in only_error(run(cli, plain_client, *args)), args
    assert not (cli.directory / "root.yaml").exists()


def test_another_namespace(cli: Cli, root: Path) -> None:
    path = cli.directory / "far.yaml"
    admin(cli, root, "create", "client", "far", "-n", "elsewhere", "--out", path)
    assert yaml.safe_load(path.read_text())["metadata"] == {"namespace": "elsewhere", "name": "far"}
    assert whoami(cli, path) == "far"
    assert admin(cli, root, "get", "clients", "-n", "elsewhere", "-o", "name") == "far\n"
    assert "far" not in admin(cli, root, "get", "clients", "-o", "name").split()


def test_without_a_file_no_token_is_made(cli: Cli, root: Path) -> None:
    result = run(cli, root, "create", "client", "later")
    assert result.returncode == 0 and "rotate client later --out" in result.stderr
    assert data(cli, root, "get", "token", "client", "later") == {"tokens": []}
    made = run(cli, root, "create", "client", "person", "--oidc-username", "corp:person", "-o", "json")
    assert json.loads(made.stdout)["username"] == "corp:person" and made.stderr == ""


def test_a_file_that_is_there_is_not_overwritten_and_nothing_is_made(cli: Cli, root: Path) -> None:
    path = cli.directory / "precious.yaml"
    path.write_text("precious")
    assert "exists already" in only_error(run(cli, root, "create", "client", "second", "--out", path))
    assert path.read_text() == "precious"
    assert "second" in only_error(run(cli, root, "get", "client", "second"))
    nowhere = Path("/proc/nowhere/second.yaml")
    assert "cannot be written" in only_error(run(cli, root, "create", "client", "second", "--out", nowhere))
    assert "second" in only_error(run(cli, root, "get", "client", "second"))


def test_saving_goes_to_the_configuration_directory(cli: Cli, root: Path) -> None:
    admin(cli, root, "create", "client", "saved", "--save", "--unsafe")
    path = cli.directory / "xdg" / "jumpstarter" / "clients" / "saved.yaml"
    assert path.stat().st_mode & 0o777 == 0o600 and yaml.safe_load(path.read_text())["drivers"]["unsafe"]
    assert cli.jmp("auth", "whoami", "--client", "saved", "-o", "name").stdout == "saved\n"
    admin(cli, root, "delete", "client", "saved", "--delete")
    assert not path.exists()


def test_the_file_may_go_to_standard_output(cli: Cli, root: Path) -> None:
    # The one place where a token is printed: because that is what was asked for.
    result = cli.jmp("admin", "create", "client", "piped", "--out", "-", env={"JMP_CLIENT_CONFIG": str(root)})
    assert result.returncode == 0 and yaml.safe_load(result.stdout)["metadata"]["name"] == "piped"
    assert 'client "piped" created' in result.stderr and not SECRET.search(result.stderr)


def test_deleting_several_tries_all(cli: Cli, root: Path) -> None:
    for name in ("d1", "d2"):
        admin(cli, root, "create", "client", name)
    result = run(cli, root, "delete", "client", "d1", "nope", "d2")
    assert result.returncode == 1 and result.stdout.splitlines() == ['client "d1" deleted', 'client "d2" deleted']
    assert 'delete client "nope"' in result.stderr and len(result.stderr.splitlines()) == 1


# --- tokens ------------------------------------------------------------------------------------------------------


def test_rotating_makes_the_old_token_worthless_and_changes_only_the_token(cli: Cli, root: Path) -> None:
    path = cli.directory / "spin.yaml"
    admin(cli, root, "create", "client", "spin", "--out", path, "--allow", "a.*")
    old = path.read_text()
    said = admin(cli, root, "rotate", "client", "spin", "--out", path)
    assert said == f'token of client "spin" rotated, 1 older revoked; configuration {path}\n'
    before, after = yaml.safe_load(old), yaml.safe_load(path.read_text())
    assert after["token"] != before["token"] and {**after, "token": ""} == {**before, "token": ""}
    assert path.stat().st_mode & 0o777 == 0o600 and whoami(cli, path) == "spin"
    path.write_text(old)
    assert "revoked" in only_error(cli.jmp("auth", "whoami", "--client-config", path))


def test_rotating_into_the_wrong_file_or_nowhere_revokes_nothing(cli: Cli, root: Path) -> None:
    path, other = cli.directory / "keep.yaml", cli.directory / "other.yaml"
    admin(cli, root, "create", "client", "keep", "--out", path)
    admin(cli, root, "create", "client", "other-one", "--out", other)
    assert run(cli, root, "rotate", "client", "keep").returncode == 2
    assert 'is of client "other-one"' in only_error(run(cli, root, "rotate", "client", "keep", "--out", other))
    assert whoami(cli, path) == "keep" and whoami(cli, other) == "other-one"


def test_importing_issues_one_more_token(cli: Cli, root: Path) -> None:
    path, more = cli.directory / "im.yaml", cli.directory / "im2.yaml"
    admin(cli, root, "create", "client", "im", "--out", path)
    admin(cli, root, "import", "client", "im", "--out", more, "--lifetime", "1h")
    assert whoami(cli, path) == whoami(cli, more) == "im"
    tokens = data(cli, root, "get", "token", "client", "im")["tokens"]
    assert len(tokens) == 2 and all(token["revoked"] is None for token in tokens)
    lines = admin(cli, root, "get", "tokens", "client", "im").splitlines()
    assert lines[0].split() == ["ID", "STATE", "ISSUED", "EXPIRES", "REVOKED"] and lines[1].split()[1] == "valid"
    # One of them alone is revoked; then the rest.
    first = min(tokens, key=lambda token: token["issued"])
    assert "1 token of" in admin(cli, root, "delete", "token", "client", "im", first["id"])
    assert whoami(cli, path) == "" and whoami(cli, more) == "im"
    assert run(cli, root, "delete", "token", "client", "im").returncode == 2
    admin(cli, root, "delete", "token", "client", "im", "--all")
    assert whoami(cli, more) == ""


# --- exporters ---------------------------------------------------------------------------------------------------


def test_an_exporter_from_its_creation_to_its_end(cli: Cli, root: Path) -> None:
    path = cli.directory / "rack.yaml"
    admin(cli, root, "create", "exporter", "rack1", "-l", "board=rpi4", "--out", path)
    config = yaml.safe_load(path.read_text())
    assert config["kind"] == "ExporterConfig" and config["metadata"]["name"] == "rack1" and config["token"]
    assert path.stat().st_mode & 0o777 == 0o600

    # What its owner wrote into the file survives a new token.
    path.write_text(yaml.safe_dump({**config, "export": {"power": {"type": "x.Y"}}}))
    admin(cli, root, "rotate", "exporter", "rack1", "--out", path)
    assert yaml.safe_load(path.read_text())["export"] == {"power": {"type": "x.Y"}}

    lines = admin(cli, root, "get", "exporter", "rack1").splitlines()
    assert lines[0].split() == ["NAME", "ENABLED", "ONLINE", "STATUS", "LEASE", "LAST", "SEEN", "LABELS"]
    assert re.fullmatch(r"rack1 +yes +no +\w+ +never +board=rpi4", lines[1])
    admin(cli, root, "update", "exporter", "rack1", "--disable", "-l", "rack=1")
    (exporter,) = data(cli, root, "get", "exporter", "rack1")["exporters"]
    assert not exporter["enabled"] and exporter["labels"] == {"board": "rpi4", "rack": "1"}
    admin(cli, root, "update", "exporter", "rack1", "--enable", "--remove-label", "board")
    (exporter,) = data(cli, root, "get", "exporter", "rack1")["exporters"]
    assert exporter["enabled"] and exporter["labels"] == {"rack": "1"}
    assert admin(cli, root, "delete", "exporter", "rack1", "-o", "name") == "rack1\n"


def test_an_exporter_may_be_created_disabled(cli: Cli, root: Path) -> None:
    made = json.loads(admin(cli, root, "create", "exporter", "spare", "--disabled", "-o", "json"))
    assert made["enabled"] is False and made["config"] is None


def test_devices_of_exporters_that_were_never_there(cli: Cli, root: Path) -> None:
    admin(cli, root, "create", "exporter", "empty", "-l", "kind=empty")
    lines = admin(cli, root, "get", "exporter", "-l", "kind=empty", "--devices").splitlines()
    assert lines[0].split() == ["EXPORTER", "DRIVER", "CLIENT", "DESCRIPTION"] and lines[1].split() == [
        "empty",
        "(none)",
    ]
    assert data(cli, root, "get", "exporter", "empty", "-d")["exporters"][0]["drivers"] == []


# --- policies ----------------------------------------------------------------------------------------------------


def test_a_policy_from_its_creation_to_its_end(cli: Cli, root: Path) -> None:
    options = ["--exporters", "board=p", "--clients", "team=ci", "--maximum-duration", "2h", "--priority", "10"]
    assert admin(cli, root, "create", "policy", "ci", *options) == 'policy "ci" created\n'
    assert "exists" in only_error(run(cli, root, "create", "policy", "ci", *options))
    lines = admin(cli, root, "get", "policy", "ci").splitlines()
    assert lines[1].split() == ["ci", "board=p", "team=ci", "10", "2h"]

    admin(cli, root, "update", "policy", "ci", "--spot", "--priority", "-5")
    (policy,) = data(cli, root, "get", "policies", "ci")["policies"]
    rule = {"clients": "team=ci", "priority": -5, "maximumDuration": 7200, "spot": True, "description": ""}
    assert policy == {"name": "ci", "exporters": "board=p", "rules": [rule]}

    # What -o yaml shows is what --file takes.
    path = cli.directory / "policy.yaml"
    path.write_text(admin(cli, root, "get", "policy", "ci", "-o", "yaml"))
    shown = yaml.safe_load(path.read_text())
    shown["policies"][0]["rules"].append({"maximumDuration": "30m"})
    path.write_text(yaml.safe_dump(shown))
    admin(cli, root, "update", "policy", "ci", "--file", path)
    (policy,) = data(cli, root, "get", "policies", "ci")["policies"]
    assert policy["rules"][0] == rule and policy["rules"][1]["maximumDuration"] == 1800
    assert "2 rules" in run(cli, root, "update", "policy", "ci", "--priority", "1").stderr
    admin(cli, root, "delete", "policy", "ci")
    assert admin(cli, root, "get", "policies") == "No resources found.\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: []", "rules"),
        ("rules: [{client: x}]", "rules.0.client"),
        ("rules: [{maximumDuration: soon}]", '"soon" is no duration'),
        ("{name: other, rules: [{}]}", 'is of policy "other"'),
    ],
)
def test_a_wrong_policy_file_names_the_field(cli: Cli, root: Path, text: str, message: str) -> None:
    path = cli.directory / "policy.yaml"
    path.write_text(text)
    error = only_error(run(cli, root, "create", "policy", "wrong", "--file", path))
    assert str(path) in error and message in error


# --- leases and the log ------------------------------------------------------------------------------------------


def test_anybodys_lease_can_be_ended_and_the_log_knows(cli: Cli, lab: LabFiles, root: Path, plain_client: Path) -> None:
    lab.exporter("slow", "-l", "board=slow")
    options = ["-l", "board=slow", "--duration", "1h", "--lease-id", "theirs", "--client-config", plain_client]
    assert cli.jmp("create", "lease", *options).returncode == 0
    assert admin(cli, root, "get", "leases", "-o", "name") == "theirs\n"
    assert admin(cli, root, "end", "lease", "theirs", "--reason", "maintenance") == 'lease "theirs" ended\n'
    assert admin(cli, root, "get", "leases", "-o", "name") == ""
    ended = json.loads(cli.jmp("get", "lease", "theirs", "-o", "json", "--client-config", plain_client).stdout)
    assert ended["leases"][0]["state"] == "ended"

    entries = data(cli, root, "get", "audit", "--lease", "theirs")["entries"]
    assert [entry["at"] for entry in entries] == sorted(entry["at"] for entry in entries)
    assert entries[0]["actor"] == "client default/nobody" and "maintenance" in json.dumps(entries)
    assert any(entry["actor"] == "client default/root" for entry in entries)
    # Two there are at least: root was created and got a token.
    only = data(cli, root, "get", "audit", "--by", "root", "--limit", "2")["entries"]
    assert len(only) == 2 and {entry["client"] for entry in only} == {"root"}
    assert data(cli, root, "get", "audit", "--since", "+1h")["entries"] == []
    lines = admin(cli, root, "get", "audit", "--lease", "theirs").splitlines()
    assert lines[0].split() == ["AT", "ACTOR", "ACTION", "LEASE", "EXPORTER", "DETAIL"]


# --- usage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["install"], "needs no cluster"),
        (["get", "clusters"], "needs no cluster"),
        (["create", "cluster"], "needs no cluster"),
        (["update", "client", "x"], "say what to change"),
        (["update", "exporter", "x"], "say what to change"),
        (["update", "policy", "x"], "say what to change"),
        (["create", "client", "x", "--save", "--out", "y"], "exclude each other"),
        (["create", "exporter", "x", "-l", "a"], "not KEY=VALUE"),
        (["get", "token", "router", "x"], "'router' is not one of"),
        (["create", "policy", "x", "--clients", "a>b"], "unsupported label selector operator"),
        (["delete", "client"], "Missing argument"),
    ],
)
def test_wrong_usage_is_exit_code_2(cli: Cli, args: list[str], text: str) -> None:
    result = cli.jmp("admin", *args, env={"JMP_CLIENT_CONFIG": "/nowhere"})
    assert result.returncode == 2 and text in " ".join(result.stderr.split()), result


def test_a_label_both_set_and_removed_is_refused(cli: Cli, root: Path) -> None:
    result = run(cli, root, "update", "client", "root", "-l", "a=b", "--remove-label", "a")
    assert result.returncode == 2 and 'label "a" is both set and removed' in result.stderr
