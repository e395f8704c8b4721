# SPDX-License-Identifier: Apache-2.0
"""The reference boards in boards/: they load as they are, and boot real images."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest_qemu import wait_console, wait_until

from jumpstarter.common.utils import serve
from jumpstarter.config.exporter import ExporterConfigV1Alpha1
from jumpstarter_driver_qemu.driver import QEMU, Qemu

ROOT = Path(__file__).resolve().parents[2]


def driver_tree(name: str) -> Any:
    """The drivers of one of our board files."""
    return ExporterConfigV1Alpha1.load_path(ROOT / "boards" / f"{name}.yaml").instantiate()


@contextmanager
def running(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A board with a state directory of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with serve(driver_tree(name)) as client:
        yield client


def built(name: str) -> dict[str, Any]:
    """Facts of the demo image, which is built if need be (cached and locked by its builder)."""
    subprocess.run([sys.executable, ROOT / "images" / f"{name.replace('-', '_')}.py"], check=True, capture_output=True)
    facts: dict[str, Any] = json.loads((ROOT / "build" / "images" / f"{name}.json").read_text())
    return facts


@pytest.mark.parametrize("name", ["virt-arm64", "virt-x86"])
def test_board_file_has_the_names_that_plays_use(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(name, tmp_path, monkeypatch) as client:
        assert {"power", "storage", "console", "ssh"} <= set(client.children)
        assert client.power.status() == "off"
        targets = {target.name: target for target in client.storage.targets()}
        assert targets["root"].path.startswith(str(tmp_path / "state" / "jumpstarter-lab" / name))
        assert client.qemu.info()["accel"] == "tcg"


def test_kept_disk_is_found_again_by_the_next_exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = []
    for _ in range(2):
        with running("virt-arm64", tmp_path, monkeypatch) as client:
            paths.append(client.storage.targets()[0].path)
    assert paths[0] == paths[1]


def test_arm64_board_flashes_stops_in_uboot_and_boots_to_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = built("virt-arm64")
    with running("virt-arm64", tmp_path, monkeypatch) as client:
        assert client.storage.flash(facts["image"]).changed
        found = client.uboot.call("reboot_to_prompt", 0.1, 60)
        assert found["version"].startswith("U-Boot 20")
        assert "distro_bootcmd" in client.uboot.call("env_get", "bootcmd")
        at = client.console.call("position")["seq"]
        left = client.uboot.call("run", "run bootcmd", 60)
        assert left["rc"] is None and left["left"] == "kernel"
        wait_console(client, rb"root@virt-arm64", since=at, timeout=120)
        with client.console.pexpect() as console:
            console.send("cat /etc/jumpstarter-marker; uname -r\r")
            console.expect_exact(facts["marker"], timeout=60)
            console.expect_exact(facts["kernel"], timeout=60)
            console.send("poweroff\r")
            wait_until(lambda: client.power.status() == "off", "off after poweroff", 60)
        wait_until(lambda: client.qemu.info()["why_off"] == "the guest powered itself off", "reason")
    with running("virt-arm64", tmp_path, monkeypatch) as client:
        assert not client.storage.flash(facts["image"]).changed, "the next exporter knows what is on the disk"


def test_autoboot_that_was_missed_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = built("virt-arm64")
    with running("virt-arm64", tmp_path, monkeypatch) as client:
        client.storage.flash(facts["image"])
        client.power.on()
        wait_console(client, rb"Starting kernel", timeout=120)
        with pytest.raises(Exception, match="no U-Boot prompt within 1 s"):
            client.uboot.interrupt(1.0)
        with pytest.raises(Exception, match="not at U-Boot's prompt"):
            client.uboot.call("run", "version")


def test_short_names_of_the_introduction_mean_the_same_machine() -> None:
    config = ExporterConfigV1Alpha1.model_validate(
        {
            "apiVersion": "jumpstarter.dev/v1alpha1",
            "kind": "ExporterConfig",
            "metadata": {"namespace": "default", "name": "demo"},
            "export": {
                "qemu": {
                    "type": "jumpstarter_driver_qemu.driver.QEMU",
                    "config": {"image_path": "/var/lib/jumpstarter/images/vm.qcow2", "memory": "1G", "cpu_cores": 2},
                }
            },
        }
    )
    with serve(config.instantiate()) as client:
        info = client.qemu.info()
        assert info["memory"] == 1 << 30 and info["smp"] == 2
        with pytest.raises(Exception, match=r"default_partitions.root: /var/lib/.*vm.qcow2 does not exist"):
            client.qemu.power.on()
    assert issubclass(QEMU, Qemu)
