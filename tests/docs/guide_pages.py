# SPDX-License-Identifier: Apache-2.0
"""Runs a page of docs/guides as a reader would: every fenced block, in order, in a directory of its own.

The first word of a block's info string says what it is, the rest how it is run:

- ``yaml``, ``python``, ``ini``, ``text`` ... with ``file=NAME``: the block is written to that file.
- ``console``: lines that begin with ``$ `` are commands, the lines below a command are what it prints. In what is
  printed, ``...`` stands for anything, and a line that is only ``...`` for any number of lines. Nothing below a
  command: its output does not matter. With ``fails``, each command has to fail. With ``background``, the command runs
  until the page ends, or until the next block with ``stop``; what is printed below it is waited for. With
  ``port=NUMBER``, it is an exporter that the page lets listen on that port: here it takes a free one, and the rest of
  the page uses that.
- ``python`` without ``file=``: a script that has to succeed.
- ``not-run=WHY``: not run; the page's test checks it in another way.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ROOT / "docs" / "guides"
BIN = Path(sys.executable).parent

_FENCE = re.compile(r"^( *)```(\S+)([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_SECONDS = 900.0
WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Block:
    """A fenced block: language, options of its info string, text, and line of the page."""

    language: str
    options: dict[str, str]
    text: str
    line: int

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """Commands of a console block, each with the lines it is said to print."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if found and found[-1][0].endswith("\\") and not found[-1][1]:
                found[-1] = (f"{found[-1][0]}\n{line}", [])
            elif line.startswith("$ "):
                found.append((line[2:], []))
            else:
                assert found, f"line {self.line}: a console block begins with a command"
                found[-1][1].append(line.rstrip())
        return found


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    text = (GUIDES / page).read_text()
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(_FENCE.findall(text)), f"{page}: odd fences"
    found = []
    for match in _FENCE.finditer(text):
        indent, language, info, body = match.groups()
        options = dict(re.findall(r'([\w-]+)(?:=("[^"]*"|\S+))?', info))
        body = re.sub(f"^{indent}", "", body, flags=re.MULTILINE)
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(language, {key: value.strip('"') for key, value in options.items()}, body, line))
    return found


def matches(expected: list[str], printed: str) -> bool:
    """Whether a command printed what the page shows."""
    pattern = ""
    for line in expected:
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*".join(re.escape(part) for part in line.split("...")) + r"[ \t]*\n"
    return re.fullmatch(pattern, printed.rstrip("\n") + "\n" if printed.strip() else "\n") is not None


@dataclass
class Running:
    """A background command and what it has printed."""

    process: subprocess.Popen[str]
    printed: str = ""
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.printed += line
                self._changed.notify_all()
        with self._changed:
            self.process.wait()
            self._changed.notify_all()

    def wait_for(self, expected: list[str]) -> None:
        """Wait until what is expected has been printed."""

        def shown() -> bool:
            return matches(["...", *expected, "..."], self.printed)

        with self._changed:
            self._changed.wait_for(lambda: shown() or self.process.returncode is not None, WAIT_SECONDS)
            assert shown(), f"never printed {expected}: {self.printed}"

    def stop(self) -> int:
        """End it as a user does, with Ctrl-C, and everything it has started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
        self._reader.join(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.returncode


@dataclass
class Reader:
    """Somebody who works through a page in a directory.

    replace: names of the page that are others here (a serial port, a port number), by their text.
    """

    directory: Path
    replace: dict[str, str] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    running: list[Running] = field(default_factory=list)
    after: dict[int, Callable[[], None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Unix sockets have 108 bytes for their path: pytest's folders are too long for some.
        self.runtime = tempfile.TemporaryDirectory(prefix="jl-guide-", dir="/tmp")
        private = ("JMP_", "JUMPSTARTER_", "_JMP", "ANSIBLE_", "XDG_", "GRPC_", "COVERAGE", "PYTEST")
        clean = {key: value for key, value in os.environ.items() if not key.startswith(private)}
        own = {name: str(self.directory / ".own" / name.lower()) for name in ("HOME", "XDG_STATE_HOME", "ANSIBLE_HOME")}
        for path in own.values():
            Path(path).mkdir(parents=True)
        self.environ = {
            **clean,
            **own,
            "XDG_CONFIG_HOME": f"{own['HOME']}/.config",
            "XDG_CACHE_HOME": f"{own['HOME']}/.cache",
            "XDG_RUNTIME_DIR": self.runtime.name,
            "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)]),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
            "COLUMNS": "100",
            **self.environ,
        }

    def said(self, text: str) -> str:
        """A text of the page with the names that are valid here."""
        for name, other in self.replace.items():
            text = text.replace(name, other)
        return text

    def read(self, page: str) -> None:
        """Work through the page."""
        for block in blocks(page):
            where = f"{page}:{block.line}"
            if "not-run" in block.options:
                continue
            if "stop" in block.options:
                self.stop()
            if name := block.options.get("file"):
                path = self.directory / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(self.said(block.text))
            elif block.language == "console":
                if port := block.options.get("port"):
                    self.replace[port] = "0"  # any free one; `command` learns which
                for command, expected in block.commands:
                    self.command(where, self.said(command), [self.said(line) for line in expected], block.options)
            elif block.language == "python":
                self.command(where, f"python - <<'END'\n{self.said(block.text)}\nEND", [], block.options)
            else:
                raise AssertionError(f"{where}: a block of {block.language} that nobody runs")

    def command(self, where: str, command: str, expected: list[str], options: dict[str, str]) -> None:
        """Run one command of the page and compare what it prints."""
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=self.directory,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        if "background" in options:
            self.running.append(Running(process))
            self.running[-1].wait_for(expected)
            if port := options.get("port"):
                heard = re.search(r"serves \S+:(\d+)", self.running[-1].printed)
                assert heard, f"{where}: {self.running[-1].printed}"
                self.replace[port] = heard[1]
            return
        try:
            printed, _ = process.communicate(timeout=_SECONDS)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        assert (process.returncode != 0) == ("fails" in options), f"{where}: {command}\n{printed}"
        if expected:
            shown = "\n".join(expected)
            told = f"{where}: {command}\n--- the page shows\n{shown}\n--- it prints\n{printed}"
            assert matches(expected, printed), told

    def stop(self) -> None:
        """End what runs in the background."""
        while self.running:
            running = self.running.pop()
            ended_by_the_page = running.process.poll() is not None
            code = running.stop()
            told = f"{running.process.args}: exit code {code}: {running.printed}"
            assert ended_by_the_page or code in (0, 130, -signal.SIGINT), told

    def close(self) -> None:
        """End everything that was started."""
        try:
            self.stop()
        finally:
            self._clean_up()

    def _clean_up(self) -> None:
        # An exporter that is just ending removes files of its own in there at the same moment.
        deadline = time.monotonic() + 20
        while True:
            try:
                self.runtime.cleanup()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
