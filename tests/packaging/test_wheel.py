# SPDX-License-Identifier: Apache-2.0
"""The wheel and the Galaxy archive do, without the source tree, what they do in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
EXPORTER = {
    "apiVersion": "jumpstarter.dev/v1alpha1",
    "kind": "ExporterConfig",
    "metadata": {"namespace": "default", "name": "bench"},
    "endpoint": "",
    "token": "",
}
# Every package there is in the repository has to be in the wheel.
SOURCES = {
    path.parent.name: path.parent
    for path in ROOT.glob("*/jumpstarter*/__init__.py")
    if path.parts[-3] not in ("build", "tests")
}
PACKAGES = sorted(SOURCES)


@dataclass
class Installed:
    """An environment with the wheel, whose other packages are those of the running one, and no source tree."""

    folder: Path
    wheel: Path
    runtime: Path

    @property
    def python(self) -> str:
        return str(self.folder / "venv" / "bin" / "python")

    def run(self, *argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, away from the repository."""
        foreign = ("ANSIBLE_", "PYTHON", "JMP_", "JUMPSTARTER_", "XDG_", "PIP_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        work = self.folder / "work"
        work.mkdir(exist_ok=True)
        env |= {
            "PATH": os.pathsep.join([str(self.folder / "venv" / "bin"), os.environ.get("PATH", os.defpath)]),
            "HOME": str(self.folder),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "ANSIBLE_HOME": str(self.folder / "ansible"),
            "ANSIBLE_LOCAL_TEMP": str(self.folder / "ansible" / "tmp"),
            "ANSIBLE_COLLECTIONS_PATH": str(self.folder / "collections"),
            # The link into the source tree is in one of the places Ansible would search by itself.
            "ANSIBLE_COLLECTIONS_SCAN_SYS_PATH": "0",
            **variables,
        }
        options: dict[str, Any] = {"cwd": work, "env": env, "stdin": subprocess.DEVNULL, "timeout": 120}
        return subprocess.run(argv, capture_output=True, text=True, check=False, **options)

    def says(self, *argv: str, **variables: str) -> str:
        """What a program that has to succeed writes."""
        done = self.run(*argv, **variables)
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """Builds both archives and installs them; nothing is fetched."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # Built from a copy: what a build leaves behind must not lie in the repository others are working in.
    left_out = shutil.ignore_patterns(".*", "build", "dist", "tests", "bench", "jumpstarter-report", "__pycache__")
    shutil.copytree(ROOT, source, symlinks=True, ignore=left_out)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True, timeout=240)
    (wheel,) = folder.glob("*.whl")
    made = Installed(folder, wheel, Path(tempfile.mkdtemp(prefix="jl-")))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True, timeout=120)
    install = [*pip, "--python", made.python, "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, timeout=240)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # A directory added this way is not searched for .pth files: the source tree, installed by one, stays out.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    galaxy = (made.python, "-m", "ansible", "galaxy", "collection")
    subprocess.run(
        [*galaxy, "build", "--output-path", str(folder)], cwd=source, check=True, timeout=120, stdout=subprocess.DEVNULL
    )
    shutil.rmtree(source)
    (archive,) = folder.glob("jumpstarter-lab-*.tar.gz")
    options = ("--collections-path", str(folder / "collections"), "--no-deps", "--offline")
    made.says(*galaxy, "install", str(archive), *options)
    yield made
    shutil.rmtree(made.runtime, ignore_errors=True)  # an ending agent may be removing its own files


@pytest.fixture
def exporter(installed: Installed) -> str:
    """A board with a power switch and a disk of 1 MiB; gives the path of its configuration."""
    power = {"type": "jumpstarter_driver_power.driver.MockPower"}
    disk = {"path": str(installed.folder / "disk"), "size": 1 << 20}
    storage = {"type": "jumpstarter_driver_storage.driver.FileFlasher", "config": disk}
    path = installed.folder / "bench.yaml"
    path.write_text(yaml.safe_dump({**EXPORTER, "export": {"power": power, "storage": storage}}))
    return str(path)


def test_every_package_and_its_data_are_in_the_wheel(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    expected = {
        path.relative_to(source.parent).as_posix()
        for source in SOURCES.values()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= names
    assert not [name for name in names if name.endswith(".pyc") or name.startswith(("plugins", "tests"))]


def test_every_package_is_imported_from_the_wheel(installed: Installed) -> None:
    asked = (
        "import importlib, json, sys; "
        "print(json.dumps([importlib.import_module(name).__path__[0] for name in sys.argv[1:]]))"
    )
    found = json.loads(installed.says(installed.python, "-c", asked, *PACKAGES))
    assert [path for path in found if not Path(path).is_relative_to(installed.folder / "venv")] == []


def test_commands_switch_a_board(installed: Installed, exporter: str) -> None:
    assert "jumpstarter" in installed.says("jmp", "version")
    shell = ("jmp", "shell", "--exporter-config", exporter, "--")
    script = "j power on && j power status"
    assert "on" in installed.says(*shell, "sh", "-c", script).split()


def test_drivers_are_known_by_their_entry_points(installed: Installed) -> None:
    listed = installed.says("jmp", "driver", "list")
    assert "jumpstarter_driver_qemu" in listed and "jumpstarter_driver_power" in listed


def test_play_switches_on_and_flashes_through_the_agent_of_the_wheel(installed: Installed, exporter: str) -> None:
    work = installed.folder
    (work / "image.img").write_bytes(os.urandom(1 << 20))
    (work / "hosts.yml").write_text(
        yaml.safe_dump({"duts": {"hosts": {"dut": {"jumpstarter_exporter_config": exporter}}}})
    )
    tasks = [
        {"name": "Switch on", "jumpstarter.lab.power": {"state": "on"}},
        {"name": "Write the image", "jumpstarter.lab.flash": {"src": str(work / "image.img")}},
    ]
    (work / "play.yml").write_text(yaml.safe_dump([{"hosts": "duts", "gather_facts": False, "tasks": tasks}]))
    play = (installed.python, "-m", "ansible", "playbook", "-i", str(work / "hosts.yml"), str(work / "play.yml"))
    output = installed.says(*play, ANSIBLE_CALLBACKS_ENABLED="jumpstarter.lab.recording", ANSIBLE_NOCOLOR="1")
    assert "changed=2" in output and "Report: " in output
    assert (work / "disk").read_bytes() == (work / "image.img").read_bytes()
