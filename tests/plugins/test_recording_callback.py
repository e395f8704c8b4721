# SPDX-License-Identifier: GPL-3.0-or-later
"""The report of a run: complete, readable by machines and people, and without secrets."""

from __future__ import annotations

import resource
import signal
import stat
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from playing import Played, Stage

from ansible_collections.jumpstarter.lab.plugins.plugin_utils._report import write_whole

PHASES = [
    {"phase": "bootloader", "at": 1.0, "seconds": 0.2},
    {"phase": "kernel", "at": 2.0, "seconds": 1.5},
    {"phase": "shell", "at": 4.0, "seconds": 3.9},
]
FLASH = {
    "changed": True, "target": "disk", "size": 100663296, "written_bytes": 29360128, "skipped_bytes": 71303168,
    "moved_bytes": 29360128, "sha256": "9f86d081884c7d65", "verified": True, "seconds": 1.0, "repaired_blocks": 0,
    "reason": "the target held another image",
}  # fmt: skip
BOOT = {"changed": True, "phases": PHASES, "bootloader_version": "U-Boot 2023.01", "kernel_version": "6.1.0-arm64"}


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    (tmp_path / "board.yaml").write_text("a: board\n")
    (tmp_path / "image.img").write_bytes(b"image")
    hosts = {name: {"jumpstarter_exporter_config": "board.yaml"} for name in ("dut1", "dut2")}
    stage = Stage(tmp_path, hosts, board_password="hunter2-secret")
    yield stage
    stage.close()


def recorded(stage: Stage, *args: str, tasks: list[dict[str, Any]], **env: str) -> tuple[Played, Path]:
    played = stage.run(tasks, *args, callbacks="jumpstarter.lab.recording", **env)
    (folder,) = (stage.folder / "jumpstarter-report").iterdir()
    return played, folder


class Text(HTMLParser):
    """Tags and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "link", "img", "iframe"}, f"the page is not self-contained: <{tag}>"
        assert not any(name in {"src", "onclick"} for name, _value in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_report_shows_hosts_phases_image_and_versions(stage: Stage) -> None:
    stage.fake_agent({"flash": [{"result": FLASH}], "boot": [{"result": BOOT}]})
    played, folder = recorded(
        stage,
        tasks=[
            {"name": "Write it", "jumpstarter.lab.flash": {"src": "image.img"}},
            {"name": "Boot it", "jumpstarter.lab.boot": {}},
        ],
    )
    assert played.rc == 0, played.output
    assert played.stdout.rstrip().splitlines()[-1] == f"Report: {folder}/report.html"
    page = (folder / "report.html").read_text()
    text = Text(page).text
    for words in (
        "dut1",
        "dut2",
        "28.0 MiB written",
        "9f86d081884c7d65",
        "U-Boot 2023.01",
        "6.1.0-arm64",
        "shell 3.9 s",
    ):
        assert words in text
    assert "http" not in page.replace("http-equiv", "")


def test_junit_has_a_suite_for_each_host_and_a_case_for_each_task(stage: Stage) -> None:
    tail = "Kernel panic\x1b[0m\x00 - not syncing"
    error = {"code": "panic", "message": "dut1: boot: panic", "data": {"console_tail": tail}}
    stage.fake_agent({"boot": [{"error": error}]})
    tasks: list[dict[str, Any]] = [
        {"name": "Power", "jumpstarter.lab.power": {}},
        {"name": "Skipped", "jumpstarter.lab.power": {}, "when": False},
        {"name": "Boot", "jumpstarter.lab.boot": {}, "when": "inventory_hostname == 'dut1'"},
    ]
    _played, folder = recorded(stage, tasks=tasks)
    root = ET.parse(folder / "junit.xml").getroot()
    assert {suite.get("name"): (suite.get("tests"), suite.get("failures"), suite.get("skipped")) for suite in root} == {
        "dut1": ("3", "1", "1"),
        "dut2": ("3", "0", "2"),
    }
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("6", "1", "3")
    (failure,) = root.iter("failure")
    assert failure.get("message") == "dut1: boot: panic"
    (case,) = [case for case in root.iter("testcase") if case.find("failure") is not None]
    assert "Kernel panic" in (case.findtext("system-out") or "")
    page = Text((folder / "report.html").read_text()).text
    assert page.index("dut1: boot: panic") < page.index("Tasks"), "errors come first"


def test_ignored_and_rescued_failures_do_not_fail_the_report(stage: Stage) -> None:
    error = {"code": "timeout", "message": "dut1: boot: no shell"}
    stage.fake_agent({"boot": [{"error": error}]})
    tasks: list[dict[str, Any]] = [
        {"name": "Try", "jumpstarter.lab.boot": {}, "ignore_errors": True},
        {
            "name": "Careful",
            "block": [{"name": "Try again", "jumpstarter.lab.boot": {}}],
            "rescue": [{"name": "Save it", "jumpstarter.lab.power": {"state": "off"}}],
        },
    ]
    played, folder = recorded(stage, "--limit", "dut1", tasks=tasks)
    assert played.rc == 0, played.output
    root = ET.parse(folder / "junit.xml").getroot()
    assert root.get("failures") == "0"
    text = Text((folder / "report.html").read_text()).text
    assert "passed" in text and "ignored" in text and "rescued" in text
    told = [frame["args"]["data"] for frame in stage.asked("recording") if frame["args"]["event"] == "result"]
    assert [entry["failed"] for entry in told] == [False, False, False]


def test_secrets_and_no_log_results_are_in_no_file(stage: Stage) -> None:
    console = stage.folder / "console.log"
    console.write_text("2026-11-22T00:00:00.000000Z +0.100000 < login with hunter2-secret\n")
    events = stage.folder / "events.jsonl"
    events.write_text('{"event": "operation", "error": "hunter2-secret refused"}\n')
    run_end = {"hosts": {"dut1": {"recording_dir": str(stage.folder), "files": ["console.log", "events.jsonl"]}}}
    error = {"code": "login_failed", "message": "dut1: boot: hunter2-secret refused"}
    stage.fake_agent({"boot": [{"error": error}], "recording": [{"result": run_end}]})
    tasks: list[dict[str, Any]] = [
        {"name": "Boot with {{ board_password }}", "jumpstarter.lab.boot": {}, "ignore_errors": True},
        {"name": "Quiet", "ansible.builtin.debug": {"msg": "quiet-value"}, "no_log": True},
        {
            "name": "Quiet failure",
            "ansible.builtin.fail": {"msg": "quiet-failure"},
            "no_log": True,
            "ignore_errors": True,
        },
    ]
    played, folder = recorded(stage, "--limit", "dut1", tasks=tasks)
    assert played.rc == 0, played.output
    written = "".join(path.read_text() for path in [*folder.iterdir(), console, events])
    for secret in ("hunter2", "quiet-value", "quiet-failure"):
        assert secret not in written
    assert "login with ********" in written
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    path.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))  # like a disk that is full
    try:
        with pytest.raises(OSError, match="too large"):
            write_whole(str(path), bytes(100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [entry.name for entry in tmp_path.iterdir()] == ["junit.xml"] and path.read_bytes() == b"old"


def test_a_console_log_cannot_write_markup_into_the_report(stage: Stage) -> None:
    (stage.folder / "console.log").write_text(
        "2026-11-22T00:00:00.000000Z +0.1 < <script>alert(1)</script>\nodd line\n"
    )
    run_end = {"hosts": {"dut1": {"recording_dir": str(stage.folder), "files": ["console.log"]}}}
    stage.fake_agent({"recording": [{"result": run_end}]})
    _played, folder = recorded(stage, "--limit", "dut1", tasks=[{"name": "Power", "jumpstarter.lab.power": {}}])
    text = Text((folder / "report.html").read_text()).text
    assert "<script>alert(1)</script>" in text and "odd line" in text


def test_works_with_strategy_free_forks_and_check_mode(stage: Stage) -> None:
    stage.fake_agent({})
    tasks = [{"name": f"Power {n}", "jumpstarter.lab.power": {}} for n in range(4)]
    playbook = stage.write(
        [{"hosts": "duts", "gather_facts": False, "strategy": "ansible.builtin.free", "tasks": tasks}]
    )
    played = stage.run_playbook(playbook, "--check", "--forks", "4", callbacks="jumpstarter.lab.recording")
    assert played.rc == 0, played.output
    (folder,) = (stage.folder / "jumpstarter-report").iterdir()
    root = ET.parse(folder / "junit.xml").getroot()
    assert [suite.get("tests") for suite in root] == ["4", "4"]
    assert "check mode" in Text((folder / "report.html").read_text()).text


def test_the_agent_learns_the_folder_plays_results_and_the_end(stage: Stage) -> None:
    stage.fake_agent({})
    _played, folder = recorded(stage, "--limit", "dut1", tasks=[{"name": "Power", "jumpstarter.lab.power": {}}])
    events = [frame["args"]["event"] for frame in stage.asked("recording")]
    assert events == ["result", "run_end"]  # play_start came before there was an agent
    assert stage.asked("start")[0]["recording_dir"] == str(folder)


def test_a_run_without_tasks_leaves_no_folder(stage: Stage) -> None:
    played = stage.run([], callbacks="jumpstarter.lab.recording")
    assert played.rc == 0, played.output
    assert list((stage.folder / "jumpstarter-report").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_warning(stage: Stage) -> None:
    (stage.folder / "jumpstarter-report").write_text("a file")
    stage.fake_agent({})
    task = {"name": "Power", "jumpstarter.lab.power": {}}
    played = stage.run([task], callbacks="jumpstarter.lab.recording")
    assert played.rc == 0
    assert "no report, because" in " ".join(played.output.split())
