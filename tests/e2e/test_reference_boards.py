# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job, for real: the play of the collection, its inventories, QEMU, U-Boot, Linux."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import disk_images as images
import pytest
from benches import ROOT, Bench, board_config
from playing import Played

MakeBench = Callable[..., Bench]
PLAYBOOK = ROOT / "playbooks" / "flash_and_test.yml"


def play(bench: Bench, board: str, *args: str) -> Played:
    """The playbook on the board's own inventory; only the exporter's state is the bench's."""
    inventory = str(ROOT / "inventories" / f"{board}.yml")
    config = json.dumps({"jumpstarter_exporter_config": str(bench.folder / board_config(bench, board))})
    return bench.run_playbook(
        PLAYBOOK, "-i", inventory, "-e", config, *args, timeout=900, callbacks="jumpstarter.lab.recording"
    )


def by_name(played: Played, board: str) -> dict[str, dict[str, object]]:
    return {task["task"]: task["hosts"][board] for task in played.tasks if board in task["hosts"]}


@pytest.mark.timeout(900)
def test_virt_arm64_is_flashed_booted_and_verified(bench: MakeBench, arm64_image: Path) -> None:
    made = bench({})
    facts = json.loads(arm64_image.with_suffix(".json").read_text())
    first = play(made, "virt-arm64")
    assert first.rc == 0, first.output
    results = by_name(first, "virt-arm64")
    assert results["Write the image and compare"]["changed"] is True
    assert "U-Boot" in str(results["Ask U-Boot for its version and environment"]["version"])
    assert str(results["Ask for the kernel"]["stdout"]).strip() == facts["kernel"]
    assert str(results["Read the marker of the image"]["stdout"]).strip() == facts["marker"]
    assert results["Put a file on the board"]["sha256"] == results["Fetch it back"]["sha256"]
    assert [phase["phase"] for phase in results["Boot to a shell"]["phases"]][-2:] == ["kernel", "shell"]  # type: ignore[attr-defined]
    assert results["Switch the board off"]["state"] == "off"
    made.wait_gone()

    report = Path(first.stdout.rstrip().rpartition("Report: ")[2])
    page = report.read_text()
    for words in ("U-Boot 20", facts["kernel"], "Phases", "console.log"):
        assert words in page
    assert ET.parse(report.with_name("junit.xml")).getroot().get("failures") == "0"
    assert "Linux version" in (report.parent / "virt-arm64" / "console.log").read_text()

    # The board wrote nothing to its disk: the same image is there, and nothing is written again.
    second = play(made, "virt-arm64")
    assert second.rc == 0, second.output
    assert by_name(second, "virt-arm64")["Write the image and compare"]["changed"] is False
    made.wait_gone()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("board", ["virt-arm64", "virt-x86"])
def test_check_mode_of_the_whole_play_touches_no_board(
    bench: MakeBench, arm64_image: Path, x86_image: Path, board: str
) -> None:
    made = bench({})
    played = play(made, board, "--check", "--diff")
    assert played.rc == 0, played.output
    assert by_name(played, board)["Write the image and compare"]["changed"] is True
    disks = [
        path for path in (made.folder / f"{board}-state").rglob("*") if path.is_file() and path.stat().st_blocks > 64
    ]
    assert disks == []
    made.wait_gone()


@pytest.mark.timeout(900)
def test_virt_arm64_with_a_corrupt_block_is_repaired(arm64: Bench, arm64_image: Path) -> None:
    task = {"name": "Write it", "jumpstarter.lab.flash": {"src": str(arm64_image)}}
    assert arm64.run([task]).result("virt-arm64")["changed"] is True
    (disk,) = [path for path in (arm64.folder / "virt-arm64-state").rglob("*") if path.stat().st_size > 64 << 20]
    before = images.sha256(disk)
    images.corrupt(disk, (10 << 20) + 3)
    result = arm64.run([task]).result("virt-arm64")
    assert (result["changed"], result["repaired_blocks"], result["verified"]) == (True, 1, True)
    assert images.sha256(disk) == before
    arm64.wait_gone()


@pytest.mark.timeout(900)
def test_image_larger_than_the_boards_disk_is_refused(arm64: Bench) -> None:
    image = arm64.folder / "big.img"
    with image.open("wb") as file:
        file.truncate(512 << 20)
    result = arm64.run([{"name": "Write it", "jumpstarter.lab.flash": {"src": str(image)}}]).result("virt-arm64")
    for words in ("virt-arm64: flash: ", "512.0 MiB", "96.0 MiB", "virt-arm64.yaml", "nothing was written"):
        assert words in result["msg"], result["msg"]
    arm64.wait_gone()


@pytest.mark.timeout(900)
def test_virt_x86_runs_ordinary_modules_over_ssh_and_scripts_over_the_console(
    bench: MakeBench, x86_image: Path
) -> None:
    made = bench({})
    facts = json.loads(x86_image.with_suffix(".json").read_text())
    played = play(made, "virt-x86")
    assert played.rc == 0, played.output
    results = by_name(played, "virt-x86")
    assert str(results["Ask for the kernel"]["stdout"]).strip() == facts["kernel"]
    assert "machine=x86_64" in str(results["Run the self-test"]["stdout"])
    assert "selftest done" in str(results["Run the self-test"]["stderr"])
    assert results["Gather facts on the board"]["ansible_facts"]["ansible_hostname"] == facts["hostname"]  # type: ignore[index]
    assert results["Copy a file"]["changed"] is True
    assert results["Reboot it"]["rebooted"] is True
    made.wait_gone()
