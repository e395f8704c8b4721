# SPDX-License-Identifier: Apache-2.0
"""Flash and dump through the agent onto a file target: progress, idempotence, what is said when it breaks."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from agent_harness import AgentFailure, RunningAgent, write_config

MIB = 1 << 20


class Disk:
    """A host with a file flasher of 64 MiB."""

    def __init__(self, directory: Path, driver: dict[str, Any] | None = None) -> None:
        self.path = directory / "disk.img"
        driver = driver or {
            "type": "jumpstarter_driver_storage.driver.FileFlasher",
            "config": {"path": str(self.path), "size": 64 * MIB},
        }
        self.config = write_config(directory / "disk.yaml", {"storage": driver})
        self.host = {"name": "disk-1", "reach": {"exporter_config": str(self.config)}}


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.bin"
    path.write_bytes(os.urandom(8 * MIB) + bytes(8 * MIB) + os.urandom(MIB))
    return path


def test_flash_writes_once_and_shows_progress(agent: RunningAgent, disk: Disk, image: Path) -> None:
    would = agent.ask("flash", disk.host, src=str(image), check=True)
    assert would["changed"] is True
    assert not disk.path.exists() or disk.path.read_bytes().strip(b"\0") == b""
    with agent.request("flash", disk.host, src=str(image), diff=True) as conversation:
        first = conversation.answer()
        texts = [event["data"]["text"] for event in conversation.events if event["event"] == "progress"]
    assert first["changed"] is True
    assert first["verified"] is True
    assert first["diff"]["after"].endswith(f"{first['sha256']}\n")
    assert disk.path.read_bytes()[: image.stat().st_size] == image.read_bytes()
    assert any("image.bin" in text and "MiB" in text for text in texts), texts
    again = agent.ask("flash", disk.host, src=str(image))
    assert (again["changed"], again["written_bytes"]) == (False, 0)


def test_flash_of_a_missing_or_too_large_image_writes_nothing(agent: RunningAgent, disk: Disk, tmp_path: Path) -> None:
    with pytest.raises(AgentFailure) as failure:
        agent.ask("flash", disk.host, src=str(tmp_path / "none.img"))
    assert failure.value.code == "not_found"
    assert agent.ask("ping")["hosts"] == [], "a missing image is noticed before a device is taken"
    large = tmp_path / "large.img"
    with large.open("wb") as file:
        file.truncate(65 * MIB)
    with pytest.raises(AgentFailure) as failure:
        agent.ask("flash", disk.host, src=str(large))
    assert failure.value.code == "too_large"
    assert "65.0 MiB" in failure.value.message
    assert "64.0 MiB" in failure.value.message
    assert str(disk.config) in failure.value.message
    assert failure.value.message.endswith("nothing was written")


def test_dump_gives_the_flashed_bytes_back(agent: RunningAgent, disk: Disk, image: Path, tmp_path: Path) -> None:
    agent.ask("flash", disk.host, src=str(image))
    copy = tmp_path / "copy.img"
    value = agent.ask("storage", disk.host, dump=str(copy))
    assert value["changed"] is True
    assert copy.read_bytes()[: image.stat().st_size] == image.read_bytes()


def test_driver_that_is_no_storage_is_refused(agent: RunningAgent, tmp_path: Path, image: Path) -> None:
    disk = Disk(tmp_path, {"type": "jumpstarter_driver_power.driver.MockPower"})
    with pytest.raises(AgentFailure, match="no method flash"):
        agent.ask("flash", disk.host, src=str(image))
    with pytest.raises(AgentFailure, match="no method host"):
        agent.ask("storage", disk.host, state="host")


def test_exporter_killed_in_mid_flash_is_named_with_the_bytes_done(agent: RunningAgent, tmp_path: Path) -> None:
    slow = {"type": "agent_test_drivers.SlowFlasher", "config": {"trace": str(tmp_path / "trace")}}
    disk = Disk(tmp_path, slow)
    image = tmp_path / "image.bin"
    image.write_bytes(os.urandom(4 * MIB))
    exporter = agent.ask("lease", disk.host)["lease"]["exporter"]
    match = re.search(r"pid (\d+)", exporter)
    assert match is not None
    with agent.request("flash", disk.host, src=str(image)) as flash:
        # Until the agent has told that bytes were written.
        while (frame := flash.frame()) is not None and frame.get("data", {}).get("phase") != "writing":
            assert frame["type"] == "event", frame
        os.kill(int(match[1]), signal.SIGKILL)
        with pytest.raises(AgentFailure) as failure:
            flash.answer()
    assert failure.value.code == "exporter_lost", failure.value.message + agent.log()
    assert failure.value.message.startswith(f"disk-1: flash: {exporter} was killed by SIGKILL; ")
    assert failure.value.message.endswith("of 4.0 MiB were done, the target is incomplete")
    assert failure.value.data["bytes_done"] > 0
