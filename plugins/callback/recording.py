# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: recording
type: aggregate
short_description: Record what happened to the devices, as JUnit XML and one HTML report per run
description:
  - Writes a folder for each run with C(report.html), one page that needs nothing else, and C(junit.xml). The
    session agent puts the console log and the events of every device beside them. The path of the report is
    printed at the end.
  - Results of tasks with C(no_log) are left out; secrets of the inventory and of vaults are masked wherever they
    turn up.
author:
  - The jumpstarter.lab contributors (@jumpstarter-lab)
version_added: 0.1.0
requirements:
  - enable it, with C(callbacks_enabled = jumpstarter.lab.recording) in C(ansible.cfg)
options:
  report_dir:
    description: Folder in which every run gets a folder of its own. A relative path is below the current directory.
    type: str
    default: jumpstarter-report
    env:
      - name: JUMPSTARTER_REPORT_DIR
    ini:
      - section: jumpstarter
        key: report_dir
"""

import os
import re
import time
import typing as t
from datetime import datetime

from ansible import context
from ansible.playbook.block import Block
from ansible.plugins.callback import CallbackBase

from ansible_collections.jumpstarter.lab.plugins.module_utils._agent import AgentClient, AgentError, AgentGone
from ansible_collections.jumpstarter.lab.plugins.plugin_utils._report import (
    BAD,
    RunRecord,
    TaskRecord,
    junit,
    recorded_texts,
    write_whole,
)
from ansible_collections.jumpstarter.lab.plugins.plugin_utils._report_html import render
from ansible_collections.jumpstarter.lab.plugins.plugin_utils._secrets import Secrets
from ansible_collections.jumpstarter.lab.plugins.plugin_utils._spawn import SOCKET_NAME, run_dir

# The callback runs in Ansible's main process: it must never hold up the run for long.
_AGENT_SECONDS = 10.0
_DETAILS = (
    "phases", "bootloader_version", "kernel_version", "console_tail", "tail", "error_code",
    "target", "size", "written_bytes", "skipped_bytes", "moved_bytes", "verified", "repaired_blocks", "reason",
    "screenshot", "similar", "distance", "bits",
)  # fmt: skip

# What Ansible puts before the message of an action or a connection; the report says it by other means.
_AROUND = re.compile(r"^(Task failed: )?(Action failed: )?")


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Fills a :class:`RunRecord` while the run goes on and writes the reports when it ends."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "jumpstarter.lab.recording"
    CALLBACK_NEEDS_ENABLED = True
    ANSIBLE_SUPPORTS_MASKING = True

    def __init__(self, *args: t.Any, **kwargs: t.Any) -> None:
        super().__init__(*args, **kwargs)
        self._run = RunRecord(playbook="", started=time.time())
        self._secrets = Secrets()
        self._folder = ""
        self._play = ""
        self._started: dict[tuple[str, str], float] = {}

    def v2_playbook_on_start(self, playbook: t.Any) -> None:
        self._run.playbook = str(playbook._file_name)
        self._run.check = bool(context.CLIARGS.get("check"))
        self._folder = self._make_folder(os.path.abspath(os.path.expanduser(str(self.get_option("report_dir")))))
        # The agent is started by a worker later on and inherits this. One that the inventory has started is told.
        os.environ["JUMPSTARTER_RECORDING_DIR"] = self._folder
        if self._folder:
            self._tell("run_start", {"dir": self._folder})

    def v2_playbook_on_play_start(self, play: t.Any) -> None:
        self._play = str(play.get_name())
        self._secrets.learn_from_play(play)
        self._tell("play_start", {"play": self._play, "play_uuid": str(play._uuid)})

    def v2_runner_on_start(self, host: t.Any, task: t.Any) -> None:
        self._started[host.get_name(), task._uuid] = time.time()

    def v2_runner_on_ok(self, result: t.Any) -> None:
        self._record(result, "changed" if result._result.get("changed") else "ok")

    def v2_runner_on_skipped(self, result: t.Any) -> None:
        self._record(result, "skipped")

    def v2_runner_on_unreachable(self, result: t.Any) -> None:
        excused = "ignored" if result._task.ignore_unreachable else ""
        self._record(result, "unreachable", excused)

    def v2_runner_on_failed(self, result: t.Any, ignore_errors: bool = False) -> None:
        self._record(result, "failed", "ignored" if ignore_errors else _rescued(result._task))

    def v2_playbook_on_stats(self, stats: t.Any) -> None:
        self._run.ended = time.time()
        told = self._tell("run_end", {"failed": self._run.bad})
        for held in told.get("held") or []:
            self._display.display(
                f"\n{held.get('host')} is kept for inspection until {held.get('until')}. Get it back with the task\n"
                f"  {held.get('reattach')}" + (f"\nor look at it with\n  {held['shell']}" if held.get("shell") else "")
            )
        for name, entry in (told.get("hosts") or {}).items():
            host = self._run.host(name)
            host.recording_dir, host.files = str(entry.get("recording_dir") or ""), sorted(entry.get("files") or [])
        if not any(host.tasks for host in self._run.hosts.values()):
            self._remove_folder()
            return
        self._write()

    def _record(self, result: t.Any, status: str, excused: str = "") -> None:
        task, host, found = result._task, result._host.get_name(), result._result
        hidden = bool(task.no_log) or "censored" in found
        now = time.time()
        record = TaskRecord(
            name=self._secrets.mask(task.get_name().rpartition(" : ")[2] or str(task.action)),
            action=str(task.resolved_action or task.action),
            play=self._play,
            status=status,
            started=self._started.pop((host, task._uuid), now),
            ended=now,
            excused=excused if status in BAD else "",
            where=str(task.get_path() or "") if status in BAD else "",
        )
        if hidden:
            record.message = "the result is hidden by no_log" if status in BAD else ""
        else:
            record.message = self._secrets.mask(_message(found)) if status in (*BAD, "skipped") else ""
            record.details = self._secrets.mask_all(_details(record.action, found))
        self._run.host(host).tasks.append(record)
        told = {"host": host, "task": record.name, "action": record.action, "status": status, "failed": record.bad}
        self._tell("result", {**told, "ignored": bool(excused), "seconds": round(record.seconds, 3)})

    def _tell(self, event: str, data: dict[str, t.Any]) -> dict[str, t.Any]:
        """Let the agent of this run know, if there is one."""
        try:
            agent = AgentClient(os.path.join(run_dir(), SOCKET_NAME), timeout=_AGENT_SECONDS)
            return agent.request({"op": "recording", "args": {"event": event, "data": data}})
        except AgentGone:
            return {}
        except AgentError as error:
            self._display.warning(f"recording: {error}")
            return {}

    def _make_folder(self, root: str) -> str:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
            folder = os.path.join(root, stamp + suffix)
            try:
                # A console log may show what is not everybody's: only the user may enter.
                os.makedirs(folder, mode=0o700)
            except FileExistsError:
                continue
            except OSError as error:
                self._display.warning(f"recording: no report, because {folder} cannot be made: {error.strerror}")
                return ""
            return folder
        return ""

    def _remove_folder(self) -> None:
        if self._folder and not os.listdir(self._folder):
            os.rmdir(self._folder)

    def _write(self) -> None:
        if not self._folder:
            return
        report = os.path.join(self._folder, "report.html")
        try:
            for host in self._run.hosts.values():
                for path in recorded_texts(host):
                    self._secrets.mask_file(path)
            write_whole(os.path.join(self._folder, "junit.xml"), junit(self._run))
            write_whole(report, render(self._run, self._folder).encode("utf-8", errors="replace"))
        except OSError as error:
            self._display.warning(f"recording: no report in {self._folder}: {error}")
            return
        self._display.display(f"\nReport: {report}")


def _rescued(task: t.Any) -> str:
    """``rescued`` when a block around *task* has a rescue section for it."""
    child, parent = task, task._parent
    while parent is not None:
        if isinstance(parent, Block) and parent.rescue and any(one._uuid == child._uuid for one in parent.block):
            return "rescued"
        child, parent = parent, getattr(parent, "_parent", None)
    return ""


def _message(found: dict[str, t.Any]) -> str:
    failed_items = [item for item in found.get("results") or [] if isinstance(item, dict) and item.get("failed")]
    if failed_items:
        return "; ".join(f"{item.get('item')}: {_message(item)}" for item in failed_items)
    text = found.get("msg") or found.get("skip_reason") or found.get("stderr") or ""
    output = str(found.get("stderr") or found.get("stdout") or "").strip()
    if text == "non-zero return code":
        return f"exit status {found.get('rc')}" + (f": {output}" if output else "")
    return _AROUND.sub("", str(text))


def _details(action: str, found: dict[str, t.Any]) -> dict[str, t.Any]:
    details = {key: found[key] for key in _DETAILS if found.get(key) is not None}
    if action.endswith(".flash") and found.get("sha256"):
        details["sha256_image"] = found["sha256"]
    output = found.get("stdout")
    if isinstance(output, str) and 0 < len(output.strip()) <= 200:
        details["summary"] = output.strip()
    return details
