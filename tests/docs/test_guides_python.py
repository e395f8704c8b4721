# SPDX-License-Identifier: Apache-2.0
"""The guides for people who write Python do what they say."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

from guide_pages import Reader

from jumpstarter_testing import eventually


def test_writing_a_driver(reader: Callable[..., Reader], tmp_path: Path) -> None:
    for line in ("gpio17", "gpio22", "gpio23"):
        (tmp_path / line).mkdir()
        (tmp_path / line / "value").write_text("0")
    made = reader(replace={"/sys/class/gpio": str(tmp_path)})
    made.read("writing-a-driver.md")

    def everything_is_given_back() -> None:
        assert {(tmp_path / line / "value").read_text() for line in ("gpio17", "gpio22", "gpio23")} == {"0"}

    eventually(everything_is_given_back, timeout=10)
    project = tomllib.loads((made.directory / "pyproject.toml").read_text())["project"]
    for name, place in project["entry-points"]["jumpstarter.drivers"].items():
        module, _, attribute = place.partition(":")
        check = f"from {module} import {attribute} as it; from jumpstarter.driver import Driver; it.mro().index(Driver)"
        subprocess.run([sys.executable, "-c", check], cwd=made.directory, timeout=60, check=True)
        assert name == attribute


def test_python_and_pytest(reader: Callable[..., Reader]) -> None:
    reader().read("python-and-pytest.md")
