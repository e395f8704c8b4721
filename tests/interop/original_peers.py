# SPDX-License-Identifier: Apache-2.0
"""The real Jumpstarter 0.9 as processes: its commands, its Python client, its exporter."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller_harness import LabFiles
from original_exporters import ended


@dataclass
class Original:
    """Runs the original's commands, with nothing of this user's configuration."""

    bin: Path
    home: Path

    @property
    def env(self) -> dict[str, str]:
        return {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(self.home),
            "JMP_CLIENT_CONFIG_HOME": str(self.home),
            "NONINTERACTIVE": "1",
            "TERM": "dumb",
            "LANG": "C.UTF-8",
        }

    def start(self, *argv: str | Path, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen([self.bin / "jmp", *argv], env=self.env, text=True, **options)

    def jmp(self, *argv: str | Path) -> str:
        """Output of a command that must succeed."""
        done = subprocess.run(
            [self.bin / "jmp", *argv], env=self.env, capture_output=True, text=True, timeout=90, check=False
        )
        assert done.returncode == 0, f"jmp {argv}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def python(self, program: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.bin / "python", "-c", program],
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )


@contextmanager
def original_exporter(theirs: Original, lab: LabFiles, config: Path) -> Iterator[subprocess.Popen[str]]:
    """Their `jmp run`, until it is registered and available here."""
    with (lab.folder / f"{config.stem}.log").open("w") as log:
        with ended(theirs.start("run", "--exporter-config", config, stdout=log, stderr=subprocess.STDOUT)) as tree:
            lab.wait_for_audit(lambda e: e["action"] == "exporter status" and e["status"] == "AVAILABLE")
            yield tree.process
