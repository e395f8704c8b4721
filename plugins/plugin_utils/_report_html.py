# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The run as one HTML page that needs nothing else: no script, no network.

This plugin util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import os
import typing as t
from datetime import datetime
from html import escape
from urllib.parse import quote

from ansible_collections.jumpstarter.lab.plugins.plugin_utils._report import (
    HostRecord,
    RunRecord,
    TaskRecord,
    console_excerpt,
    console_logs,
    tail_text,
)

_TAIL_LINES = 15
_STYLE = """
:root { color-scheme: light dark; --bg:#f6f7f9; --card:#fff; --ink:#1c2430; --soft:#667085; --line:#e3e7ed;
  --ok:#1a7f4b; --changed:#b26a00; --bad:#c8323c; --skip:#98a2b3; --excused:#7a5af8; --code:#0f1722; --codeink:#d6deeb;
  --p0:#9db8d9; --p1:#6e9bd1; --p2:#4a7fc1; --p3:#2f64a8; --p4:#1f4a85; }
@media (prefers-color-scheme: dark) { :root { --bg:#12161d; --card:#1a202a; --ink:#e6eaf0; --soft:#98a2b3;
  --line:#2b3340; --ok:#4cc38a; --changed:#f0a63a; --bad:#ff6b6f; --skip:#5d6778; --excused:#a391ff; --code:#0b0f15; } }
* { box-sizing:border-box }
body { margin:0; background:var(--bg); color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif }
main { max-width:1080px; margin:0 auto; padding:28px 20px 60px }
h1 { font-size:22px; margin:0 }
h2 { font-size:18px; margin:36px 0 10px; display:flex; align-items:center; gap:10px }
h3 { font-size:13px; margin:18px 0 6px; color:var(--soft); font-weight:600; text-transform:uppercase;
  letter-spacing:.04em }
.meta { color:var(--soft); margin:4px 0 0 }
.card { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:16px 18px; margin:12px 0;
  overflow-x:auto }
.pill { display:inline-block; border-radius:99px; padding:1px 10px; font-size:12px; font-weight:600; color:#fff;
  white-space:nowrap }
.ok { background:var(--ok) } .changed { background:var(--changed) } .failed, .unreachable { background:var(--bad) }
.skipped { background:var(--skip) } .ignored, .rescued { background:var(--excused) }
@media (prefers-color-scheme: dark) { .pill { color:#10151c } }
header { display:flex; align-items:flex-start; gap:16px; justify-content:space-between }
header .pill { font-size:15px; padding:4px 16px }
table { border-collapse:collapse; width:100% }
th { text-align:left; font-size:12px; color:var(--soft); font-weight:600; padding:4px 10px 6px 0; white-space:nowrap }
td { border-top:1px solid var(--line); padding:6px 10px 6px 0; vertical-align:top }
td.num, th.num { text-align:right; font-variant-numeric:tabular-nums; white-space:nowrap }
td:last-child, th:last-child { padding-right:0 }
.error { border-left:4px solid var(--bad) }
.error p { margin:6px 0; overflow-wrap:anywhere }
.soft { color:var(--soft) }
a { color:inherit }
code { font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; overflow-wrap:anywhere }
code.one { white-space:nowrap }
pre { background:var(--code); color:var(--codeink); border-radius:8px; padding:12px 14px; margin:8px 0 0; overflow:auto;
  max-height:440px; font:12.5px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace }
pre i { color:#71809a; font-style:normal } pre b { color:#8fc7ff; font-weight:400 }
pre u { color:#e0b860; text-decoration:none }
.line { position:relative; height:22px; background:var(--bg); border-radius:5px; overflow:hidden; margin:4px 0 }
.line span { position:absolute; top:0; bottom:0; min-width:3px; border-right:1px solid var(--card) }
.line span { font-size:11px; line-height:22px; color:#fff; overflow:hidden; white-space:nowrap; text-overflow:ellipsis }
.line span:not(:empty) { padding:0 6px }
@media (prefers-color-scheme: dark) { .line:not(.phases) span { color:#10151c } }
.scale { display:flex; justify-content:space-between; color:var(--soft); font-size:11px }
dl { display:grid; grid-template-columns:max-content 1fr; gap:3px 18px; margin:0 }
dt { color:var(--soft) } dd { margin:0; overflow-wrap:anywhere }
.screens { display:flex; flex-wrap:wrap; gap:14px } figure { margin:0; max-width:320px }
figure img { max-width:100%; border:1px solid var(--line); border-radius:6px; display:block }
figcaption { font-size:12px }
summary { cursor:pointer } details { margin-top:10px }
@media print { pre { max-height:none } }
"""


def render(run: RunRecord, folder: str) -> str:
    """The page. *folder* is where it will lie: links to recorded files are relative to it."""
    verdict = "failed" if run.bad else "ok"
    words = {"failed": "failed", "ok": "passed"}[verdict] + (" (check mode)" if run.check else "")
    failures = [(host, task) for host in run.hosts.values() for task in host.tasks if task.bad]
    name = os.path.basename(run.playbook)
    when = datetime.fromtimestamp(run.started).astimezone().strftime("%d %B %Y, %H:%M:%S %Z")
    tasks = sum(len(host.tasks) for host in run.hosts.values())
    parts = [
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{escape(name)}: {words}</title><style>{_STYLE}</style></head><body><main>",
        f"<header><div><h1>{escape(name)}</h1><p class='meta'>{when} · {duration(run.ended - run.started)} · "
        f"{_plural(len(run.hosts), 'host')} · {_plural(tasks, 'task')}</p></div>"
        f"<span class='pill {verdict}'>{words}</span></header>",
        *[_error(host, task) for host, task in failures],
        _overview(run),
        *[_host(run, host, folder) for host in run.hosts.values()],
        "</main></body></html>\n",
    ]
    return "\n".join(parts)


def _error(host: HostRecord, task: TaskRecord) -> str:
    tail = tail_text(task.details) or _last_lines(host)
    console = f"<h3>Last lines of the console</h3><pre>{escape(tail)}</pre>" if tail else ""
    where = f"<p class='soft'>{escape(task.where)}</p>" if task.where else ""
    pill = f"<span class='pill {task.status}'>{task.status}</span>"
    return (
        f"<div class='card error'>{pill} <strong>{escape(host.name)}</strong>: {escape(task.name)}<p>"
        f"{escape(task.message) or 'no message'}</p>{where}{console}</div>"
    )


def _last_lines(host: HostRecord) -> str:
    """For a task that brings no lines of its own, a module that failed on the device for example."""
    lines = [line.text for path in console_logs(host) for line in console_excerpt(path, 40)[0] if line.mark == "<"]
    return "\n".join([line for line in lines if line.strip()][-_TAIL_LINES:])


def _overview(run: RunRecord) -> str:
    rows = []
    for host in run.hosts.values():
        verdict = "failed" if host.bad else "ok"
        flash, boot = host.latest("sha256_image"), host.latest("phases")
        versions = [str(boot[key]) for key in ("bootloader_version", "kernel_version") if boot.get(key)]
        rows.append(
            f"<tr><td><a href='#{_anchor(host)}'>{escape(host.name)}</a></td>"
            f"<td><span class='pill {verdict}'>{'failed' if host.bad else 'passed'}</span></td>"
            f"<td class='num'>{len(host.tasks)}</td><td class='num'>{host.count('changed')}</td>"
            f"<td class='num'>{host.count('failed', 'unreachable')}</td>"
            f"<td>{_flash_words(flash)}</td><td class='num'>{_boot_words(boot)}</td>"
            f"<td class='soft'>{escape(' · '.join(versions))}</td></tr>"
        )
    counts = "".join(f"<th class='num'>{word}" for word in ("Tasks", "Changed", "Failed"))
    head = f"<th>Host<th>Result{counts}<th>Image<th class='num'>Boot<th>Runs"
    return f"<div class='card'><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _host(run: RunRecord, host: HostRecord, folder: str) -> str:
    verdict = "failed" if host.bad else "ok"
    parts = [
        f"<h2 id='{_anchor(host)}'>{escape(host.name)} <span class='pill {verdict}'>"
        f"{'failed' if host.bad else 'passed'}</span></h2><div class='card'>",
        _timeline(run, host),
        *[_phases(task) for task in host.tasks if task.details.get("phases")],
        _tasks(host),
        *[_flash(task.details) for task in host.tasks if "sha256_image" in task.details],
        _screens(host, folder),
        *[_console(path, host.bad) for path in console_logs(host)],
        _files(host, folder),
        "</div>",
    ]
    return "\n".join(part for part in parts if part)


def _timeline(run: RunRecord, host: HostRecord) -> str:
    if not host.tasks:
        return ""
    begin, span = run.started, max(run.ended - run.started, 0.001)
    bars = "".join(_bar(task, begin, span) for task in host.tasks if task.status != "skipped")
    return (
        f"<h3>Timeline of tasks</h3><div class='line'>{bars}</div>"
        f"<div class='scale'><span>0 s</span><span>{duration(span)}</span></div>"
    )


def _bar(task: TaskRecord, begin: float, span: float) -> str:
    left, width = 100 * (task.started - begin) / span, 100 * task.seconds / span
    label = escape(task.name) if width > 10 else ""
    return (
        f"<span class='{task.excused or task.status}' style='left:{left:.2f}%;width:{width:.2f}%' "
        f"title='{escape(task.name, quote=True)}: {duration(task.seconds)}'>{label}</span>"
    )


def _phases(task: TaskRecord) -> str:
    phases = [phase for phase in task.details["phases"] if isinstance(phase, dict)]
    if not phases:
        return ""
    starts = [float(phase.get("seconds") or 0) for phase in phases]
    # The last phase is reached, not left: it gets room for its name.
    total = max(task.seconds, starts[-1] * 1.12) or 1.0
    ends = [*starts[1:], total]
    bars = ""
    for number, (phase, start, end) in enumerate(zip(phases, starts, ends, strict=True)):
        left, width = 100 * start / total, 100 * max(0.0, end - start) / total
        label = f"{escape(str(phase.get('phase')), quote=True)} {duration(start)}"
        style = f"left:{left:.2f}%;width:{width:.2f}%;background:var(--p{min(number, 4)})"
        bars += f"<span style='{style}' title='{label}'>{label}</span>"
    return (
        f"<h3>Phases: {escape(task.name)}</h3><div class='line phases'>{bars}</div>"
        f"<div class='scale'><span>power on</span><span>{duration(total)}</span></div>"
    )


def _tasks(host: HostRecord) -> str:
    rows = "".join(
        f"<tr><td><span class='pill {task.excused or task.status}'>{task.excused or task.status}</span></td>"
        f"<td>{escape(task.name)}{_note(task)}</td><td class='soft'><code class='one'>{escape(task.action)}</code></td>"
        f"<td class='num'>{duration(task.seconds)}</td></tr>"
        for task in host.tasks
    )
    head = "<th>Result<th>Task<th>Action<th class='num'>Took"
    return f"<h3>Tasks</h3><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _note(task: TaskRecord) -> str:
    text = task.message if task.status in ("failed", "unreachable") else str(task.details.get("summary") or "")
    return f"<div class='soft'>{escape(_short(text))}</div>" if text else ""


def _flash(details: dict[str, t.Any]) -> str:
    rows: list[tuple[str, str]] = []
    for key, label in (("target", "Target"), ("reason", "Why"), ("sha256_image", "sha256 of the image")):
        if details.get(key):
            rows.append((label, str(details[key])))
    for key, label in (
        ("size", "Size of the image"),
        ("written_bytes", "Written"),
        ("skipped_bytes", "Not written"),
        ("moved_bytes", "Moved to the exporter"),
    ):
        if isinstance(details.get(key), int):
            rows.append((label, size(details[key])))
    if details.get("verified") is not None:
        repaired = details.get("repaired_blocks") or 0
        words = "yes, read back and compared" if details["verified"] else "no"
        rows.append(("Verified", words + (f"; {repaired} blocks repaired" if repaired else "")))
    body = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in rows)
    return f"<h3>Image</h3><dl>{body}</dl>"


def _screens(host: HostRecord, folder: str) -> str:
    """The pictures that tasks took, each a link to its file."""
    shown = []
    for task in host.tasks:
        name = str(task.details.get("screenshot") or "")
        if name not in host.files:
            continue
        path = escape(quote(os.path.relpath(os.path.join(host.recording_dir, name), folder)))
        words = task.name
        if task.details.get("similar") is not None:
            verdict = "as wanted" if task.details["similar"] else "not as wanted"
            words += f": {verdict}, {task.details.get('distance')} of {task.details.get('bits')} bits differ"
        shown.append(
            f"<figure><a href='{path}'><img src='{path}' alt='{escape(words, quote=True)}' loading='lazy'></a>"
            f"<figcaption class='soft'>{escape(words)}</figcaption></figure>"
        )
    return f"<h3>Screens</h3><div class='screens'>{''.join(shown)}</div>" if shown else ""


def _console(path: str, is_open: bool) -> str:
    lines, before = console_excerpt(path)
    if not lines:
        return ""
    tags = {"<": ("", ""), ">": ("<b>&gt; ", "</b>"), "#": ("<u># ", "</u>")}
    shown = []
    for line in lines:
        begin, end = tags[line.mark]
        at = f"<i>{line.at:9.3f} </i>" if line.at is not None else ""
        shown.append(f"{at}{begin}{escape(line.text)}{end}")
    more = f" (last {len(lines)} of {before + len(lines)} lines)" if before else ""
    return (
        f"<details{' open' if is_open else ''}><summary>Console: {escape(os.path.basename(path))}{more}</summary>"
        f"<pre>{chr(10).join(shown)}</pre></details>"
    )


def _files(host: HostRecord, folder: str) -> str:
    if not host.files:
        return ""
    paths = {name: os.path.relpath(os.path.join(host.recording_dir, name), folder) for name in host.files}
    links = ", ".join(f"<a href='{escape(path, quote=True)}'>{escape(name)}</a>" for name, path in paths.items())
    return f"<h3>Files</h3>{links}"


def duration(seconds: float) -> str:
    """Seconds for people: 12 ms, 3.4 s, 2 min 5 s."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.0005 else "0 s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(count: int) -> str:
    """Bytes for people, as 96.0 MiB."""
    value, units = float(count), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{count} bytes" if units[0] == "bytes" else f"{value:.1f} {units[0]}"


def _flash_words(details: dict[str, t.Any]) -> str:
    if not details:
        return ""
    written = details.get("written_bytes")
    words = f"{size(written)} written" if written else "already there"
    return words + (" ✓" if details.get("verified") else "")


def _boot_words(details: dict[str, t.Any]) -> str:
    phases = details.get("phases") or []
    last = phases[-1] if phases and isinstance(phases[-1], dict) else {}
    return escape(f"{last.get('phase')} {duration(float(last['seconds']))}") if last.get("seconds") is not None else ""


def _anchor(host: HostRecord) -> str:
    return "host-" + "".join(char if char.isalnum() else "-" for char in host.name)


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _short(text: str, limit: int = 240) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
