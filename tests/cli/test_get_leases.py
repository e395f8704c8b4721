# SPDX-License-Identifier: Apache-2.0
"""`jmp get/create/update/delete` against a controller process and exporters that are online."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_harness import BIN, POWER, TIMEOUT, Cli, RunningExporter, only_error
from controller_harness import LabFiles

EXPORT = {"power": {"type": POWER}, "group": {"children": {"aux": {"type": POWER}}}}


@pytest.fixture(scope="module")
def alice(lab: LabFiles) -> Path:
    return lab.client("alice")


@pytest.fixture(scope="module")
def bob(lab: LabFiles) -> Path:
    return lab.client("bob")


@contextmanager
def online(cli: Cli, config: Path) -> Iterator[None]:
    """Context: the exporter runs and is registered."""
    process = subprocess.Popen(
        [str(BIN / "jmp"), "--log-format", "text", "run", "--exporter-config", str(config)],
        env=cli.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    running = RunningExporter(process)
    try:
        running.wait_for("registered")
        yield
    finally:
        running.end()


@pytest.fixture(scope="module")
def board(lab: LabFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An exporter with board=x that is online for the module. Tests give it back."""
    config = lab.exporter("board-x", "-l", "board=x", "-l", "rack=a", export=EXPORT)
    lab.exporter("board-y", "-l", "board=y")
    with online(Cli(tmp_path_factory.mktemp("exporter")), config):
        yield "board-x"


@contextmanager
def leased(cli: Cli, client: Path, *options: str) -> Iterator[str]:
    """Context: a lease that `client` holds; its name."""
    result = cli.jmp("create", "lease", "--client-config", client, *options, "--wait", "-o", "name")
    assert result.returncode == 0, result
    name = result.stdout.strip()
    try:
        yield name
    finally:
        cli.jmp("delete", "lease", "--client-config", client, name)


def jmp(cli: Cli, client: Path, *args: str, code: int = 0) -> str:
    """The output of a command, which ends with this code."""
    result = cli.jmp(*args, env={"JMP_CLIENT_CONFIG": str(client)})
    assert result.returncode == code, result
    return result.stdout


def data(cli: Cli, client: Path, *args: str) -> Any:
    return json.loads(jmp(cli, client, *args, "-o", "json"))


# --- exporters ---------------------------------------------------------------------------------------------------


def test_exporters_are_a_table(cli: Cli, alice: Path, board: str) -> None:
    lines = jmp(cli, alice, "get", "exporters").splitlines()
    assert lines[0].split() == ["NAME", "LABELS"]
    assert re.fullmatch(r"board-x +board=x,.*rack=a", lines[1]), lines
    # Every column begins where its title does.
    assert {line.index("board=") for line in lines[1:]} == {lines[0].index("LABELS")}


def test_exporters_with_who_holds_them(cli: Cli, alice: Path, board: str) -> None:
    with leased(cli, alice, "-l", "board=x", "--duration", "10m") as lease:
        lines = jmp(cli, alice, "get", "e", "--with", "leases,online", "--with", "status").splitlines()
        assert lines[0].split() == ["NAME", "ONLINE", "STATUS", "LEASED", "BY", "LEASE", "UNTIL", "LABELS"]
        assert re.match(rf"board-x +yes +\w+ +alice +{lease} +\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d +board=x", lines[1]), (
            lines
        )
        assert re.match(r"board-y +no ", lines[2])


def test_exporters_as_data_with_their_drivers(cli: Cli, alice: Path, board: str) -> None:
    found = {item["name"]: item for item in data(cli, alice, "get", "exporters")["exporters"]}
    drivers = {driver["path"]: driver["client"] for driver in found["board-x"]["drivers"]}
    assert drivers["group.aux"] == drivers["power"] == "jumpstarter_driver_power.client.PowerClient"
    assert found["board-x"]["online"] and not found["board-y"]["online"]
    assert found["board-x"]["labels"]["board"] == "x" and found["board-x"]["lease"] is None
    assert yaml.safe_load(jmp(cli, alice, "get", "exporters", "-o", "yaml"))["exporters"][0]["name"] == "board-x"


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        (["-l", "board=x"], ["board-x"]),
        (["-l", "board in (x,y),rack!=a"], ["board-y"]),
        (["-l", "board", "-l", "!rack"], ["board-y"]),
        (["-l", "board=z"], []),
        (["board-y"], ["board-y"]),
    ],
)
def test_exporters_are_selected(cli: Cli, alice: Path, board: str, selector: list[str], names: list[str]) -> None:
    assert jmp(cli, alice, "get", "exporters", *selector, "-o", "name").split() == names


def test_labels_that_the_lab_hides_or_deprecates(cli: Cli, alice: Path, lab: LabFiles) -> None:
    lab.exporter("museum", "-l", "old=1", "-l", "shelf=7", "-l", "board=m")
    result = cli.jmp("get", "exporters", "museum", "--client-config", alice)
    assert result.stdout.splitlines()[1].split() == ["museum", "board=m"]
    assert result.stderr == "Note: museum: label old is deprecated: use board\n"
    shown = jmp(cli, alice, "get", "exporters", "museum", "--show-hidden-labels")
    assert shown.splitlines()[1].split() == ["museum", "board=m,old=1,shelf=7"]
    options = ["-l", "old=1", "--duration", "1h", "--lease-id", "old", "--client-config", alice]
    result = cli.jmp("create", "lease", *options)
    assert result.returncode == 0 and "Warning: label old is deprecated: use board" in result.stderr
    jmp(cli, alice, "delete", "lease", "old")


def test_nothing_found_is_said(cli: Cli, alice: Path, lab: LabFiles) -> None:
    assert jmp(cli, alice, "get", "exporters", "-l", "board=none") == "No resources found.\n"
    assert jmp(cli, alice, "get", "leases", "-l", "board=none") == "No resources found.\n"
    assert data(cli, alice, "get", "leases", "-l", "board=none") == {"leases": []}


def test_disabled_exporters_are_shown_when_asked_for(cli: Cli, alice: Path, lab: LabFiles, root: Path) -> None:
    lab.exporter("off", "-l", "board=off")
    jmp(cli, root, "admin", "update", "exporter", "off", "--disable")
    assert jmp(cli, alice, "get", "exporters", "-l", "board=off", "-o", "name") == ""
    lines = jmp(cli, alice, "get", "exporters", "-l", "board=off", "--allow-disabled").splitlines()
    assert lines[0].split()[:2] == ["NAME", "ENABLED"] and lines[1].split()[:2] == ["off", "no"]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["get", "exporters", "-l", "a>b"], "unsupported label selector operator"),
        (["get", "exporters", "--with", "colour"], '"colour" is none of'),
        (["create", "lease", "--duration", "1h"], "say which exporter"),
        (["create", "lease", "-l", "a=b"], "--duration is required"),
        (["create", "lease", "-l", "a=b", "--duration", "soon"], '"soon" is no duration'),
        (["create", "lease", "-l", "a=b", "--duration", "1h", "--begin-time", "soon"], '"soon" is no time'),
        (["create", "lease", "-l", "a=b", "--duration", "1h", "--tag", "a"], '"a" is not KEY=VALUE'),
        (["create", "lease", "-l", "a=b", "--duration", "1h", "--context", f"{'k' * 33}=v"], "32 characters"),
        (["create", "lease", "-l", "a=b", "--duration", "1h", "--timeout", "5s"], "--timeout goes with --wait"),
        (["update", "lease", "x"], "say what to change"),
        (["delete", "leases"], "give either names"),
        (["delete", "leases", "x", "-a"], "give either names"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_asks_nobody(cli: Cli, args: list[str], text: str) -> None:
    result = cli.jmp(*args, env={"JMP_CLIENT_CONFIG": "/nowhere"})
    assert result.returncode == 2 and text in " ".join(result.stderr.split()), result


def test_no_client_is_one_line_that_says_how_to_get_one(cli: Cli) -> None:
    assert "jmp login" in only_error(cli.jmp("get", "exporters"))


def test_no_controller_is_one_line(cli: Cli, lab: LabFiles, alice: Path) -> None:
    away = cli.directory / "away.yaml"
    away.write_text(alice.read_text().replace(lab.endpoint, "127.0.0.1:1"))
    assert "controller 127.0.0.1:1" in only_error(cli.jmp("get", "leases", "--client-config", away))


# --- leases ------------------------------------------------------------------------------------------------------


def test_a_lease_from_its_creation_to_its_end(cli: Cli, alice: Path, bob: Path, board: str) -> None:
    options = ["-l", "board=x", "--duration", "1h", "--tag", "team=ci", "--context", "build=7", "--lease-id", "mine"]
    lines = jmp(cli, alice, "create", "lease", *options, "--wait").splitlines()
    assert lines[0].split() == [
        "NAME",
        "STATUS",
        "EXPORTER",
        "CLIENT",
        "EXPIRES",
        "AT",
        "REMAINING",
        "SELECTOR",
        "TAGS",
    ]
    assert re.fullmatch(r"mine +ready +board-x +alice +\S+ \S+ +(5\dm( \d+s)?|1h) +board=x +team=ci", lines[1]), lines

    (lease,) = data(cli, alice, "get", "leases")["leases"]
    assert (lease["state"], lease["exporter"], lease["client"], lease["duration"]) == ("ready", board, "alice", 3600)
    assert lease["context"] == {"build": "7"} and lease["tags"] == {"team": "ci"}
    assert jmp(cli, alice, "get", "leases", "--tag-filter", "team=ci", "-o", "name") == "mine\n"
    assert jmp(cli, alice, "get", "leases", "--tag-filter", "team=qa", "-o", "name") == ""
    # Not bob's, but bob may look.
    assert jmp(cli, bob, "get", "leases", "-o", "name") == ""
    assert jmp(cli, bob, "get", "leases", "-A", "-o", "name") == "mine\n"

    changed = data(cli, alice, "update", "lease", "mine", "--duration", "2h")
    assert changed["duration"] == 7200
    assert jmp(cli, alice, "update", "lease", "mine", "--to-client", "bob", "-o", "name") == "mine\n"
    assert "mine" in only_error(cli.jmp("update", "lease", "mine", "--duration", "1h", "--client-config", alice))
    assert jmp(cli, bob, "get", "leases", "-o", "name") == "mine\n"

    assert jmp(cli, bob, "delete", "leases", "mine") == 'lease "mine" deleted\n'
    assert jmp(cli, bob, "get", "leases", "-o", "name") == ""
    assert jmp(cli, bob, "get", "leases", "-a", "-o", "name").split() == ["mine"]
    assert data(cli, bob, "get", "lease", "mine")["leases"][0]["state"] == "ended"


def test_waiting_shows_the_place_in_the_queue_and_gives_up_cleanly(
    cli: Cli, alice: Path, bob: Path, board: str
) -> None:
    with leased(cli, alice, "-n", "board-x", "--duration", "10m"):
        for seconds in (1, 5, 25):  # the place may come too late on a machine that has much to do
            name, options = f"late-{seconds}", ["-l", "board=x", "--duration", "1h", "--wait", "--timeout"]
            result = cli.jmp("create", "lease", *options, f"{seconds}s", "--lease-id", name, "--client-config", bob)
            assert result.returncode == 1 and result.stdout == ""
            assert data(cli, bob, "get", "leases", name)["leases"][0]["state"] == "ended"
            if "place" in result.stderr:
                break
        first, last = result.stderr.splitlines()
        assert first.startswith(f"lease {name} waits: place 1 of 1 in the queue"), result
        told = f"not granted within {seconds}s (place 1 of 1 in the queue); it was given back"
        assert last == f"Error: lease {name}: {told}"


def test_a_waiting_lease_is_granted_when_its_turn_comes(cli: Cli, alice: Path, bob: Path, board: str) -> None:
    with leased(cli, alice, "-n", "board-x", "--duration", "10m") as first:
        command = [BIN / "jmp", "create", "lease", "-l", "board=x", "--duration", "1h", "--wait", "-o", "name"]
        with subprocess.Popen(
            [*map(str, command), "--lease-id", "next", "--client-config", str(bob)],
            env=cli.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as waiting:
            try:
                assert waiting.stderr is not None
                assert "place 1 of 1" in waiting.stderr.readline()
                jmp(cli, alice, "delete", "leases", first)
                assert waiting.communicate(timeout=TIMEOUT)[0] == "next\n"
                assert waiting.returncode == 0
            finally:
                waiting.kill()
    assert jmp(cli, bob, "delete", "leases", "-a") == 'lease "next" deleted\n'


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_waiting_leaves_no_lease_behind(
    cli: Cli, alice: Path, bob: Path, board: str, number: signal.Signals
) -> None:
    with leased(cli, alice, "-n", "board-x", "--duration", "10m"):
        command = [BIN / "jmp", "create", "lease", "-l", "board=x", "--duration", "1h", "--wait"]
        with subprocess.Popen(
            [*map(str, command), "--lease-id", f"unwanted-{number}", "--client-config", str(bob)],
            env=cli.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as waiting:
            try:
                assert waiting.stderr is not None
                waiting.stderr.readline()
                waiting.send_signal(number)
                _, errors = waiting.communicate(timeout=TIMEOUT)
                assert waiting.returncode == 2 and "Traceback" not in errors
                assert f"lease unwanted-{number} was given back" in errors
            finally:
                waiting.kill()
        assert jmp(cli, bob, "get", "leases", "-o", "name") == ""


def test_a_lease_that_cannot_be_is_an_error(cli: Cli, alice: Path, lab: LabFiles) -> None:
    for options in (["-n", "board-nowhere"], ["-l", "board=nowhere", "--wait"]):
        result = cli.jmp("create", "lease", *options, "--duration", "1h", "--client-config", alice)
        assert result.returncode == 1 and result.stderr.startswith("Error: lease "), result
        assert len(result.stderr.splitlines()) == 1


def test_a_lease_for_later_says_when(cli: Cli, alice: Path, board: str) -> None:
    times = ["--begin-time", "+2h", "--end-time", "+3h"]
    line = jmp(cli, alice, "create", "lease", "-n", board, *times, "--lease-id", "later").splitlines()[1]
    assert re.match(r"later +scheduled \(\d{4}-\d\d-\d\d ", line), line
    (lease,) = data(cli, alice, "get", "lease", "later")["leases"]
    assert lease["state"] == "pending" and lease["duration"] == 3600 and lease["begin_time"].endswith("Z")
    jmp(cli, alice, "delete", "lease", "later")


def test_deleting_several_tries_all_and_reports_each(cli: Cli, alice: Path, bob: Path, board: str) -> None:
    for client, name in ((alice, "one"), (alice, "two"), (bob, "his")):
        jmp(cli, client, "create", "lease", "-l", "board=x", "--duration", "1h", "--lease-id", name)
    result = cli.jmp("delete", "leases", "nope", "one", "his", "two", "--client-config", alice)
    assert result.returncode == 1
    assert result.stdout.splitlines() == ['lease "one" deleted', 'lease "two" deleted']
    assert [line.split(": ")[2] for line in result.stderr.splitlines()] == ["delete lease nope", "delete lease his"]
    assert jmp(cli, bob, "delete", "leases", "-l", "board=x", "-o", "name") == "his\n"
    assert "no active lease" in only_error(cli.jmp("delete", "leases", "-a", "--client-config", alice))


def test_pages_are_all_fetched(cli: Cli, alice: Path, board: str) -> None:
    assert len(jmp(cli, alice, "get", "exporters", "--page-size", "1", "-o", "name").split()) >= 2
