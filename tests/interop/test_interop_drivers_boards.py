# SPDX-License-Identifier: Apache-2.0
"""esp32, pi-pico, corellium and iscsi of the real Jumpstarter 0.9 and ours: their client with our drivers, our client
with theirs. Chip, board and cloud are those of the drivers' own tests."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from original_exporters import our_client, our_exporter, running, their_exporter

for area in ("corellium", "esp32", "pi_pico"):
    sys.path.insert(0, str(Path(__file__).parents[1] / area))

from fake_corellium import TOKEN, FakeCorellium  # noqa: E402
from fake_esp32 import FakeEsp32OnPty  # noqa: E402
from fake_pico import FakePico, make_uf2  # noqa: E402

from jumpstarter.common.exceptions import DriverError  # noqa: E402
from jumpstarter_driver_network.adapters import PexpectAdapter  # noqa: E402
from jumpstarter_testing import eventually  # noqa: E402

MIB = 1 << 20

#: The original looks for bootloaders among all mounts of the machine: it gets a namespace with this one only.
_BOARD = """
import hashlib, json, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fake_pico import FakePico
others = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if line.startswith("fakepico ")]
for other in others:
    subprocess.run(["umount", "-l", other.encode().decode("unicode_escape")], check=True)
pico = FakePico(Path(sys.argv[2]))
pico.enter_bootloader()
print("READY", flush=True)
sys.stdin.read()
pico.close()
print(json.dumps([pico.file, hashlib.sha256(b"".join(pico.flash[at] for at in sorted(pico.flash))).hexdigest()]))
"""


@contextmanager
def pico_in_a_namespace(mount: Path) -> Iterator[tuple[tuple[str, ...], Callable[[], list[str]]]]:
    """A board that is seen in a mount namespace only: what starts a program in there; its last file and flash."""
    argv = ["unshare", "--mount", sys.executable, "-c", _BOARD, Path(__file__).parents[1] / "pi_pico", mount]
    with running(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as board:
        assert board.stdout is not None
        assert board.stdout.readline() == "READY\n"
        yield ("nsenter", f"--mount=/proc/{board.pid}/ns/mnt"), lambda: json.loads(board.communicate(timeout=20)[0])


@dataclass
class Counterparties:
    """What is behind the drivers, and files for them."""

    folder: Path
    chip: FakeEsp32OnPty
    cloud: FakeCorellium
    firmware: bytes
    disk: bytes

    def drivers(self, esp32: dict[str, Any], pico: dict[str, Any]) -> dict[str, Any]:
        """The `export:` section; without more options, 0.9 understands all of it."""
        serial = {"type": "jumpstarter_driver_pyserial.driver.PySerial", "config": {"url": self.chip.url}}
        car = {"project_id": "Default Project", "device_name": "car", "device_flavor": "kronos"}
        disks = {"root_dir": str(self.folder / "disks"), "host": "127.0.0.1", "port": 0}
        return {
            "esp": {
                "type": "jumpstarter_driver_esp32.driver.Esp32Flasher",
                "config": {"chip": "esp32", **esp32},
                "children": {"serial": serial},
            },
            "pico": {"type": "jumpstarter_driver_pi_pico.driver.PiPicoFlasher", "config": pico},
            "car": {"type": "jumpstarter_driver_corellium.driver.Corellium", "config": car},
            "disks": {"type": "jumpstarter_driver_iscsi.driver.ISCSI", "config": disks},
        }

    @property
    def environment(self) -> dict[str, str]:
        """Of an exporter, for the cloud."""
        authority = str(self.cloud.authority)
        return {
            "CORELLIUM_API_HOST": self.cloud.host,
            "CORELLIUM_API_TOKEN": TOKEN,
            "REQUESTS_CA_BUNDLE": authority,
            "SSL_CERT_FILE": authority,
            "no_proxy": "localhost",
        }


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Counterparties]:
    firmware, disk = os.urandom(20_000), os.urandom(MIB)
    (tmp_path / "app.bin").write_bytes(firmware)
    (tmp_path / "blink.uf2").write_bytes(make_uf2(40))
    (tmp_path / "disk.img.gz").write_bytes(gzip.compress(disk, 1))
    (tmp_path / "other.img").write_bytes(disk[::-1])
    chip, cloud = FakeEsp32OnPty(str(tmp_path / "ttyESP")), FakeCorellium(tmp_path, plain=True)
    yield Counterparties(tmp_path, chip, cloud, firmware, disk)
    cloud.close()
    chip.close()


def program_of(uf2: Path) -> str:
    """Digest of what a board has in its flash when it took that file."""
    data = uf2.read_bytes()
    return hashlib.sha256(b"".join(data[at + 32 : at + 288] for at in range(0, len(data), 512))).hexdigest()


THEIR_CLIENT = """
import json, subprocess, sys
from pathlib import Path
from jumpstarter.utils.env import env
folder, out = Path(sys.argv[1]), {}

def refusal(call, *arguments):
    try:
        return call(*arguments)
    except Exception as error:
        while getattr(error, "exceptions", None):
            error = error.exceptions[0]
        return str(error)

with env() as client:
    esp, pico, car, disks = client.esp, client.pico, client.car, client.disks
    out["chip"] = esp.get_chip_info()
    esp.flash(folder / "app.bin", target="0x10000")
    esp.dump(folder / "back", target="0x10000:20000")
    out["reset"] = refusal(esp.hard_reset)
    out["model"] = pico.bootloader_info()["Model"]
    pico.enter_bootloader()
    pico.flash(folder / "blink.uf2", target="app.uf2")
    out["pico gone"] = refusal(pico.bootloader_info)
    out["pico dump"] = refusal(pico.dump, folder / "no")
    car.power.on()
    with car.serial.pexpect() as console:
        console.sendline("root")
        console.expect_exact("root", timeout=20)
    car.power.off(destroy=True)
    disks.start()
    out["iqn"] = disks.upload_image("disk", folder / "disk.img.gz")
    disks.upload_image("other", folder / "other.img")
    disks.remove_lun("other")
    out["luns"] = disks.list_luns()
    login = disks.call("get_credentials")  # their client does not know of passwords
    where = f"{login['user']}%{login['password']}@{disks.get_host()}:{int(disks.get_port())}/{out['iqn']}/1"
    subprocess.run(["qemu-img", "convert", "-O", "raw", f"iscsi://{where}", folder / "copy"], check=True)
    disks.stop()
print(json.dumps(out))
"""


def test_a_client_of_the_original_uses_our_drivers(original: Path, world: Counterparties, tmp_path: Path) -> None:
    pico = FakePico(tmp_path / "RPI RP2")
    pico.enter_bootloader()
    states = {"state_dir": str(tmp_path / "state"), "staging_dir": str(tmp_path / "staged")}
    drivers = world.drivers(
        {"before": "no-reset", "after": "no-reset", **states},
        {"volume": str(pico.mount), "settle_seconds": 0.1, "bootloader_wait_seconds": 5, **states},
    )
    try:
        with our_exporter(original, tmp_path, drivers, **world.environment) as theirs:
            out = json.loads(theirs.python(THEIR_CLIENT, tmp_path).splitlines()[-1])
        assert pico.file == "app.uf2"
        flash = b"".join(pico.flash[at] for at in sorted(pico.flash))
        assert hashlib.sha256(flash).hexdigest() == program_of(tmp_path / "blink.uf2")
    finally:
        pico.close()
    assert (out["chip"]["mac"], out["model"]) == ("a4:cf:12:34:56:78", "Raspberry Pi RPI-RP2")
    assert world.chip.chip.flash[0x10000:].startswith(world.firmware)
    assert (tmp_path / "back").read_bytes() == world.firmware
    assert "has no DTR and RTS" in out["reset"]
    assert "not in its bootloader" in out["pico gone"] and "cannot be read" in out["pico dump"]
    assert not world.cloud.instances
    assert "DELETE /v1/instances/00000000-0001" in world.cloud.calls
    assert [(lun["name"], lun["size"], lun["lun_id"]) for lun in out["luns"]] == [("disk", MIB, 1)]
    assert (tmp_path / "copy").read_bytes() == world.disk


def test_our_client_uses_drivers_of_the_original(original: Path, world: Counterparties, tmp_path: Path) -> None:
    """Behind their iSCSI driver is no target but a fake of the library it uses; its files are looked at."""
    uf2 = tmp_path / "blink.uf2"
    lio = {"PYTHONPATH": str(Path(__file__).parent / "fake_lio")}
    with pico_in_a_namespace(tmp_path / "RPI RP2") as (through, board):
        with (
            their_exporter(original, tmp_path, world.drivers({}, {}), through, **world.environment, **lio) as address,
            our_client(address) as client,
        ):
            _drive(client, world)
            _drive_pico(client.pico, uf2)
        assert board() == ["app.uf2", program_of(uf2)]
    assert not world.cloud.instances


def _drive(client: Any, world: Counterparties) -> None:
    folder = world.folder
    assert client.esp.get_chip_info()["mac"] == "a4:cf:12:34:56:78"
    assert client.esp.flash(folder / "app.bin", target="0x10000").changed
    assert world.chip.chip.flash[0x10000:].startswith(world.firmware)
    client.esp.dump(folder / "back", target="0x10000:20000")
    assert (folder / "back").read_bytes() == world.firmware
    client.esp.erase()
    assert not world.chip.chip.flash.strip(b"\xff")
    client.car.power.on()
    with PexpectAdapter(client.car.serial) as console:
        console.expect_exact("login: ", timeout=20)
        console.sendline("root")
        console.expect_exact("root", timeout=20)
    client.car.power.off(destroy=True)
    disks = client.disks
    disks.start()
    assert disks.upload_image("disk", folder / "disk.img.gz") == "iqn.2024-06.dev.jumpstarter:target1"
    assert (folder / "disks/disk.img").read_bytes() == world.disk
    assert [(lun["name"], lun["size"], lun["lun_id"]) for lun in disks.list_luns()] == [("disk", MIB, 0)]
    disks.remove_lun("disk")
    disks.upload_image("other", folder / "other.img")
    assert [lun["name"] for lun in disks.list_luns()] == ["other"]
    disks.clear_all_luns()
    assert (disks.list_luns(), disks.get_host()) == ([], "127.0.0.1")
    disks.stop()


def _drive_pico(pico: Any, uf2: Path) -> None:
    assert pico.bootloader_info()["Model"] == "Raspberry Pi RPI-RP2"
    pico.enter_bootloader()
    assert pico.flash(uf2, target="app.uf2").changed
    eventually(lambda: _assert_gone(pico), timeout=20)  # their driver does not wait for it


def _assert_gone(pico: Any) -> None:
    try:
        raise AssertionError(f"still in its bootloader: {pico.bootloader_info()}")
    except DriverError as error:
        assert "No Pico BOOTSEL volume" in str(error)
