# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run was: the record the callback fills and the reports are made of, and JUnit XML of it.

This plugin util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import contextlib
import os
import re
import typing as t
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from datetime import UTC, datetime

EXCERPT_LINES = 300
# What XML 1.0 cannot hold even escaped; consoles send such bytes.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_STAMP = re.compile(r"^\S+T\S+Z \+(\d+\.\d+) ([<>#]) ?(.*)$")

BAD = ("failed", "unreachable")


@dataclass
class TaskRecord:
    """One task on one host. Times are seconds since the epoch."""

    name: str
    action: str
    play: str
    status: str
    started: float
    ended: float
    message: str = ""
    excused: str = ""
    """``ignored`` or ``rescued`` when the play goes on after a failure."""
    details: dict[str, t.Any] = field(default_factory=dict)
    where: str = ""

    @property
    def seconds(self) -> float:
        return max(0.0, self.ended - self.started)

    @property
    def bad(self) -> bool:
        return self.status in BAD and not self.excused


@dataclass
class HostRecord:
    """One device in the run."""

    name: str
    tasks: list[TaskRecord] = field(default_factory=list)
    recording_dir: str = ""
    files: list[str] = field(default_factory=list)

    @property
    def bad(self) -> bool:
        return any(task.bad for task in self.tasks)

    def count(self, *statuses: str) -> int:
        return sum(task.status in statuses and not task.excused for task in self.tasks)

    def latest(self, key: str) -> dict[str, t.Any]:
        """Details of the last task that has *key* among them."""
        return next((task.details for task in reversed(self.tasks) if key in task.details), {})


@dataclass
class RunRecord:
    """One ``ansible-playbook``."""

    playbook: str
    started: float
    ended: float = 0.0
    check: bool = False
    hosts: dict[str, HostRecord] = field(default_factory=dict)

    def host(self, name: str) -> HostRecord:
        return self.hosts.setdefault(name, HostRecord(name))

    @property
    def bad(self) -> bool:
        return any(host.bad for host in self.hosts.values())


@dataclass(frozen=True)
class ConsoleLine:
    """A line of a console log: seconds since the log began, ``<`` from the device, ``>`` to it, ``#`` a note."""

    at: float | None
    mark: str
    text: str


def console_excerpt(path: str, lines: int = EXCERPT_LINES) -> tuple[list[ConsoleLine], int]:
    """Last *lines* of the console log at *path*, and how many there were before them; empty when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            found = file.read().splitlines()
    except OSError:
        return [], 0
    parsed = []
    for line in found[-lines:]:
        match = _STAMP.match(line)
        parsed.append(ConsoleLine(float(match[1]), match[2], match[3]) if match else ConsoleLine(None, "<", line))
    return parsed, max(0, len(found) - lines)


def console_logs(host: HostRecord) -> list[str]:
    """Paths of the host's console logs."""
    return [os.path.join(host.recording_dir, name) for name in host.files if name.endswith(".log")]


def recorded_texts(host: HostRecord) -> list[str]:
    """Paths of all the agent has written about the host: console logs and events."""
    events = [os.path.join(host.recording_dir, name) for name in host.files if name.endswith(".jsonl")]
    return console_logs(host) + events


def xml_text(text: str) -> str:
    """*text* without what XML cannot hold."""
    return _NOT_XML.sub("\ufffd", text)


def iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


def junit(run: RunRecord) -> bytes:
    """The run as JUnit XML: a suite for each host, a case for each task."""
    root = ET.Element("testsuites", name=xml_text(run.playbook))
    for host in run.hosts.values():
        suite = ET.SubElement(
            root,
            "testsuite",
            name=xml_text(host.name),
            timestamp=iso(host.tasks[0].started if host.tasks else run.started),
            tests=str(len(host.tasks)),
            failures=str(host.count("failed")),
            errors=str(host.count("unreachable")),
            skipped=str(host.count("skipped")),
            time=f"{sum(task.seconds for task in host.tasks):.3f}",
        )
        for task in host.tasks:
            _junit_case(suite, task)
    for name in ("tests", "failures", "errors", "skipped"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    ET.indent(root)
    return t.cast(bytes, ET.tostring(root, encoding="utf-8", xml_declaration=True))


def _junit_case(suite: ET.Element, task: TaskRecord) -> None:
    case = ET.SubElement(
        suite, "testcase", classname=xml_text(task.play), name=xml_text(task.name), time=f"{task.seconds:.3f}"
    )
    text = xml_text(task.message)
    if task.bad:
        kind = "failure" if task.status == "failed" else "error"
        failure = ET.SubElement(case, kind, message=text, type=xml_text(task.action))
        failure.text = text + (f"\n{task.where}" if task.where else "")
        tail = tail_text(task.details)
        if tail:
            ET.SubElement(case, "system-out").text = xml_text(tail)
    elif task.status == "skipped":
        ET.SubElement(case, "skipped", message=text)
    elif task.excused:
        ET.SubElement(case, "system-out").text = f"{task.excused}: {text}"


def tail_text(details: dict[str, t.Any]) -> str:
    """The console's last lines in a result, given as text or as a list."""
    tail = details.get("console_tail") or details.get("tail") or ""
    return "\n".join(map(str, tail)) if isinstance(tail, list) else str(tail)


def write_whole(path: str, data: bytes) -> None:
    """Write a file that is there completely or not at all; what had been there stays when the disk is full."""
    partial = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise
