# SPDX-License-Identifier: Apache-2.0
"""The reference pages say what the code does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_options_of_documentation_fragments_are_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "collection.md").read_text()
    flash = page.partition("## Action `jumpstarter.lab.flash`")[2].partition("\n## ")[0]
    assert "| `progress` |" in flash and "jumpstarter_exporter_config" in page


def test_reference_pages_are_current() -> None:
    argv = [sys.executable, ROOT / "tools" / "reference.py", "--check"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
