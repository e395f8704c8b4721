# SPDX-License-Identifier: Apache-2.0
"""The command line itself: quick, honest about exit codes, one line per error."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import click
import pytest
import yaml
from cli_harness import Authority, Cli, only_error, secret_file

from jumpstarter_cli.errors import exit_code_of
from jumpstarter_cli.jmp import jmp
from jumpstarter_cli.lazy import LazyGroup

HEAVY = ["grpc", "pydantic", "yaml", "anyio", "asyncio", "google.protobuf", "importlib.metadata", "rich"]


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["config", "--help"],
        ["config", "client", "--help"],
        ["shell", "--help"],
        ["login", "--help"],
        ["auth", "status", "--help"],
        ["get", "exporters", "--help"],
        ["create", "lease", "--help"],
        ["delete", "leases", "--help"],
        ["admin", "--help"],
        ["admin", "create", "client", "--help"],
        ["admin", "get", "audit", "--help"],
        ["admin", "update", "policy", "--help"],
    ],
)
def test_help_imports_nothing_heavy(cli: Cli, args: list[str]) -> None:
    code = (
        "import sys\nfrom jumpstarter_cli.jmp import jmp\n"
        f"try:\n    jmp.main({args!r}, prog_name='jmp')\nexcept SystemExit: pass\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    result = cli.run(sys.executable, "-c", code)
    assert "HEAVY []" in result.stdout, result


def walk(group: LazyGroup, path: str = "jmp") -> list[tuple[str, click.Command, str]]:
    found = []
    for name, entry in group.entries.items():
        command = group._load(name)
        found.append((f"{path} {name}", command, entry.help))
        if isinstance(command, LazyGroup):
            found.extend(walk(command, f"{path} {name}"))
    return found


@pytest.mark.parametrize(
    ("path", "command", "text"), walk(jmp), ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_table_of_commands_is_true(path: str, command: click.Command, text: str) -> None:
    assert command.name == path.rpartition(" ")[2]
    assert (command.help or "").splitlines()[0] == text
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path} {parameter.opts} has no help"


@pytest.mark.parametrize(
    "args",
    [
        ["version"],
        ["ver"],
        ["v"],
        ["driver", "ls"],
        ["conf", "client", "ls"],
        ["config", "exporters", "list"],
        ["g", "e", "--help"],
        ["get", "lease", "--help"],
        ["c", "leases", "--help"],
        ["rm", "l", "--help"],
        ["d", "leases", "--help"],
        ["a", "g", "c", "--help"],
        ["admin", "i", "exporters", "--help"],
        ["admin", "get", "tokens", "--help"],
    ],
)
def test_aliases(cli: Cli, args: list[str]) -> None:
    assert cli.jmp(*args).returncode == 0


def test_an_ambiguous_beginning_is_refused(cli: Cli) -> None:
    result = cli.jmp("co")
    assert result.returncode == 2 and "too many matches: completion, config" in result.stderr


@pytest.mark.parametrize("args", [["nonsense"], ["run", "--nonsense"], ["config", "client", "use"], []])
def test_wrong_usage_is_exit_code_2(cli: Cli, args: list[str]) -> None:
    assert cli.jmp(*args).returncode == 2


@pytest.mark.parametrize(
    ("result", "code"), [(None, 0), (0, 0), (3, 3), (True, 0), (False, 0), ("text", 0), (1.5, 0), ([1], 0)]
)
def test_only_whole_numbers_are_exit_codes(result: object, code: int) -> None:
    assert exit_code_of(result) == code


def test_version(cli: Cli) -> None:
    assert cli.jmp("version").stdout.startswith("Jumpstarter v")
    data = json.loads(cli.jmp("version", "-o", "json").stdout)
    assert data["pythonVersion"] == sys.version.split()[0]
    assert yaml.safe_load(cli.jmp("driver", "version", "-o", "yaml").stdout) == data


def test_driver_list(cli: Cli) -> None:
    names = cli.jmp("driver", "list", "-o", "name").stdout.splitlines()
    assert "jumpstarter_driver_power.driver.MockPower" in names
    items = json.loads(cli.jmp("driver", "list", "-o", "json").stdout)["items"]
    assert [item["type"] for item in items] == sorted(names, key=lambda n: [i["type"] for i in items].index(n))
    assert cli.jmp("driver", "list").stdout.splitlines()[0].split() == ["NAME", "TYPE"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(cli: Cli, shell: str) -> None:
    assert "_JMP_COMPLETE" in cli.jmp("completion", shell).stdout


def test_completion_knows_the_commands(cli: Cli) -> None:
    result = cli.jmp(env={"_JMP_COMPLETE": "bash_complete", "COMP_WORDS": "jmp config cl", "COMP_CWORD": "2"})
    assert result.stdout.split() == ["plain,client"]


def test_a_reader_that_leaves_is_no_traceback(cli: Cli) -> None:
    result = cli.run("/bin/sh", "-c", "jmp driver list -o json | true")
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr


# --- configurations ----------------------------------------------------------------------------------------------

CREATE = ["--namespace", "ns", "--endpoint", "lab:443", "--nointeractive"]


def create(cli: Cli, alias: str, *more: str) -> str:
    token = cli.directory / "token"
    token.touch(mode=0o600)
    token.write_text("s3cret\n")
    result = cli.jmp("config", "client", "create", alias, *CREATE, "--token-file", token, "-o", "path", *more)
    assert result.returncode == 0, result
    return result.stdout.strip()


def test_client_configurations_live_and_die(cli: Cli) -> None:
    path = create(cli, "one", "--allow", "a.*,b.*")
    create(cli, "two", "--unsafe")
    data = yaml.safe_load(Path(path).read_text())
    assert data["token"] == "s3cret" and data["drivers"] == {"allow": ["a.*", "b.*"]}
    assert data["metadata"] == {"namespace": "ns", "name": "one"}

    listed = json.loads(cli.jmp("config", "client", "list", "-o", "json").stdout)
    assert listed["currentConfig"] == "one"  # the first one became current
    assert [item["alias"] for item in listed["items"]] == ["one", "two"]
    assert cli.jmp("config", "client", "list", "-o", "name").stdout.split() == ["one", "two"]
    assert cli.jmp("config", "client", "use", "two").returncode == 0
    assert cli.jmp("config", "client", "list").stdout.splitlines()[2].startswith("*")
    assert cli.jmp("config", "client", "delete", "two").returncode == 0
    assert json.loads(cli.jmp("config", "client", "list", "-o", "json").stdout)["currentConfig"] == "one"
    assert "two" in only_error(cli.jmp("config", "client", "delete", "two"))
    assert "two" in only_error(cli.jmp("config", "client", "use", "two"))
    cli.jmp("config", "client", "delete", "one")
    assert cli.jmp("config", "client", "list").stdout == "No resources found.\n"


@pytest.mark.parametrize("output", [[], ["-o", "json"], ["-o", "yaml"], ["-o", "name"]])
@pytest.mark.parametrize("kind", ["client", "exporter"])
def test_no_output_shows_a_secret(cli: Cli, kind: str, output: list[str]) -> None:
    create(cli, "one")
    path = cli.directory / "xdg" / "jumpstarter" / f"{kind}s" / "one.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f"kind: {kind.title()}Config\nmetadata: {{namespace: ns, name: one}}\ntoken: s3cret\nrefresh_token: s3cret\n"
    path.write_text(text if kind == "client" else text.replace("refresh_token: s3cret\n", ""))
    result = cli.jmp("config", kind, "list", *output)
    assert result.returncode == 0 and "one" in result.stdout
    assert "s3cret" not in result.stdout + result.stderr


def test_a_broken_file_does_not_hide_the_others(cli: Cli) -> None:
    path = create(cli, "one")
    (cli.directory / "xdg" / "jumpstarter" / "clients" / "zero.yaml").write_text("kind: [")
    result = cli.jmp("config", "client", "list")
    assert result.returncode == 0 and path in result.stdout
    assert "zero.yaml" in result.stderr and "not valid YAML" in result.stderr


@pytest.mark.parametrize("kind", ["client", "exporter"])
def test_the_authority_of_the_controller_goes_into_the_file(cli: Cli, authority: Authority, kind: str) -> None:
    result = cli.jmp("config", kind, "create", "one", *CREATE, "--token", "t", "--ca", authority.ca)
    assert result.returncode == 0, result
    data = yaml.safe_load((cli.directory / "xdg" / "jumpstarter" / f"{kind}s" / "one.yaml").read_text())
    assert base64.b64decode(data["tls"]["ca"]).strip() == authority.ca.read_bytes().strip()
    wrong = secret_file(cli.directory / "wrong.pem", "no certificate")
    again = cli.jmp("config", kind, "create", "two", *CREATE, "--token", "t", "--ca", wrong)
    assert "no certificate in PEM" in only_error(again)


def test_creating_twice_or_outside_is_refused(cli: Cli) -> None:
    create(cli, "one")
    assert "exists" in only_error(cli.jmp("config", "client", "create", "one", *CREATE, "--token", "x"))
    assert "alias" in only_error(cli.jmp("config", "client", "create", "../one", *CREATE, "--token", "x"))
    result = cli.jmp("config", "client", "create", "two", "--nointeractive")
    assert result.returncode == 2 and "--namespace" in result.stderr


def test_a_token_on_the_command_line_is_warned_about(cli: Cli) -> None:
    result = cli.jmp("config", "client", "create", "one", *CREATE, "--token", "s3cret", "--allow", "a.*")
    assert result.returncode == 0 and "process list" in result.stderr and "s3cret" not in result.stderr


def test_what_is_missing_is_asked_for(cli: Cli) -> None:
    result = cli.jmp("config", "exporter", "create", "one", "--token", "t", input="ns\n\nlab:443\n")
    assert result.returncode == 0, result
    data = yaml.safe_load((cli.directory / "xdg" / "jumpstarter" / "exporters" / "one.yaml").read_text())
    assert data["metadata"] == {"namespace": "ns", "name": "one"} and data["endpoint"] == "lab:443"


def test_exporter_configurations_live_and_die(cli: Cli) -> None:
    assert cli.jmp("config", "exporter", "create", *CREATE, "--token", "t").returncode == 0
    assert cli.jmp("config", "exporter", "list", "-o", "name").stdout == "default\n"
    path = cli.directory / "xdg" / "jumpstarter" / "exporters" / "default.yaml"
    editor = cli.directory / "editor"
    editor.write_text('#!/bin/sh\nrm "$1"; umask 022; echo "motd: edited" > "$1"\n')
    editor.chmod(0o700)
    assert cli.jmp("config", "exporter", "edit", env={"EDITOR": str(editor)}).returncode == 0
    assert path.stat().st_mode & 0o777 == 0o600 and "edited" in path.read_text()
    editor.write_text('#!/bin/sh\necho "kind: Wrong" > "$1"\n')
    assert "kind" in only_error(cli.jmp("config", "exporter", "edit", env={"EDITOR": str(editor)}))
    assert cli.jmp("config", "exporter", "delete").returncode == 0
    assert "default" in only_error(cli.jmp("config", "exporter", "delete"))
