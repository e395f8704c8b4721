# SPDX-License-Identifier: GPL-3.0-or-later
"""A bench: a stage with exporter configurations and an eye on what its runs leave behind."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from playing import Stage

ROOT = Path(__file__).resolve().parents[2]
# The time the issue grants a run to be gone after its ansible-playbook has ended.
GONE_SECONDS = 5.0


def exporter_config(name: str, export: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An exporter configuration as a document."""
    return {
        "apiVersion": "jumpstarter.dev/v1alpha1",
        "kind": "ExporterConfig",
        "metadata": {"namespace": "default", "name": name},
        "endpoint": "",
        "token": "",
        "export": export,
        **more,
    }


MOCK = {"power": {"type": "jumpstarter_driver_power.driver.MockPower"}}


class Bench(Stage):
    """A stage whose processes can be told from all others: they have its runtime directory in their environment."""

    def config(self, name: str, export: dict[str, Any], **more: Any) -> str:
        """Write an exporter configuration beside the inventory; returns its name."""
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(exporter_config(name, export, **more)))
        return f"{name}.yaml"

    def pids(self, word: str) -> list[int]:
        """Processes of this bench with `word` in their command line."""
        return [pid for pid, command in self.processes().items() if word in command]

    def sockets(self) -> list[str]:
        """What lies in the runtime directory, but for the empty files by which exporters and lease names are locked."""
        base = self.runtime / "jumpstarter-lab"
        found = []
        for folder, folders, files in os.walk(base):  # unlike rglob it does not mind that things vanish meanwhile
            found += [os.path.relpath(os.path.join(folder, name), base) for name in (*folders, *files)]
        return sorted(name for name in found if not re.match(r"locks(/|$)|d-[0-9a-f]+\.lock$", name))

    def wait_gone(self, seconds: float = GONE_SECONDS) -> float:
        """Wait until no process and no socket of the bench is left; seconds it took.

        AssertionError says what is left.
        """
        start = time.monotonic()
        while (left := (self.processes(), self.sockets())) != ({}, []):
            assert time.monotonic() - start < seconds, f"left after {seconds} s: {left}"
            time.sleep(0.02)
        return time.monotonic() - start

    def start_until(self, playbook: Path, words: str, *args: str, **env: str) -> subprocess.Popen[str]:
        """Start a run and return it as soon as a line of its output has `words`."""
        process = self.start(playbook, *args, **env)
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if words in line:
                return process
        process.wait(timeout=60)
        raise AssertionError(f"{words!r} never came: {''.join(seen)}")


def build_image(script: str) -> Path:
    """Let images/`script`.py make its image, when it is not there yet; one process at a time. Returns its path."""
    folder = ROOT / "build" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{script}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run([sys.executable, str(ROOT / "images" / f"{script}.py")], check=True, stdout=subprocess.DEVNULL)
    return folder / f"{script.replace('_', '-')}.img"


def board_config(bench: Bench, name: str) -> str:
    """The configuration of a reference board, with its state in the bench; returns the file's name."""
    document = yaml.safe_load((ROOT / "boards" / f"{name}.yaml").read_text())
    document["export"]["qemu"]["config"]["state_dir"] = str(bench.folder / f"{name}-state")
    (bench.folder / f"{name}.yaml").write_text(yaml.safe_dump(document))
    return f"{name}.yaml"
