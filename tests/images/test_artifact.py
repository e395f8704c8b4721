# SPDX-License-Identifier: Apache-2.0
"""Image builds happen once per input, again when an input or the image changes, and leave nothing behind on failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labimages import artifact, tools
from labimages.errors import BuildError


class _Builder:
    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, path: Path) -> dict[str, Any]:
        self.runs += 1
        path.write_bytes(b"image %d" % self.runs)
        return {"kernel": "6.1"}


@pytest.fixture
def builder() -> _Builder:
    return _Builder()


def test_a_second_build_with_the_same_inputs_does_nothing(tmp_path: Path, builder: _Builder) -> None:
    output = tmp_path / "x.img"
    facts, built = artifact.build_once("virt-arm64", output, {"marker": "a"}, builder)
    again, built_again = artifact.build_once("virt-arm64", output, {"marker": "a"}, builder)
    assert (built, built_again, builder.runs) == (True, False, 1)
    assert facts == again == json.loads(output.with_suffix(".json").read_text())
    assert facts["size"] == 7 and facts["kernel"] == "6.1" and len(facts["sha256"]) == 64


def test_another_option_a_changed_image_or_force_builds_again(tmp_path: Path, builder: _Builder) -> None:
    output = tmp_path / "x.img"
    artifact.build_once("virt-arm64", output, {"marker": "a"}, builder)
    artifact.build_once("virt-arm64", output, {"marker": "b"}, builder)
    assert builder.runs == 2
    output.write_bytes(b"damaged")
    artifact.build_once("virt-arm64", output, {"marker": "b"}, builder)
    assert builder.runs == 3
    artifact.build_once("virt-arm64", output, {"marker": "b"}, builder, force=True)
    assert builder.runs == 4


def test_a_failed_build_keeps_the_image_that_was_there(tmp_path: Path, builder: _Builder) -> None:
    output = tmp_path / "x.img"
    artifact.build_once("virt-arm64", output, {"marker": "a"}, builder)

    def fail(path: Path) -> dict[str, Any]:
        path.write_bytes(b"half")
        raise BuildError("no network")

    with pytest.raises(BuildError, match="no network"):
        artifact.build_once("virt-arm64", output, {"marker": "b"}, fail)
    assert output.read_bytes() == b"image 1"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.img.lock", "x.img", "x.json"]


def test_every_builder_source_of_the_board_counts_as_input() -> None:
    names = set(artifact.builder_sources("virt-arm64"))
    assert {"virt_arm64.py", "labimages/cpio.py", "files/virt-arm64/init"} <= names
    assert "files/virt-x86/syslinux.cfg" in artifact.builder_sources("virt-x86")
    assert not any("x86" in name for name in names)
    assert artifact.inputs_digest({"a": b"1", "b": b""}, {}) != artifact.inputs_digest({"a": b"", "b": b"1"}, {})


def test_a_missing_program_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tools, "search_path", lambda: str(tmp_path))
    with pytest.raises(BuildError, match=r"missing mcopy, mmdebstrap: run 'apt-get install mmdebstrap mtools' as root"):
        tools.require("mcopy", "mmdebstrap")


def test_a_failing_program_is_reported_with_what_it_said() -> None:
    with pytest.raises(BuildError, match=r"sh -c echo gone >&2; exit 3... ended with code 3: gone"):
        tools.run(["sh", "-c", "echo gone >&2; exit 3"])
