# SPDX-License-Identifier: Apache-2.0
"""The Galaxy archive holds the Ansible side and nothing else, works without the rest, and its metadata agree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

# Generated code, and the examples of the documentation that run exactly as they are written there.
VERBATIM = ("proto/jumpstarter_protocol/jumpstarter/", "tests/seeds/")

# What may be at the top of the archive; a new folder has to be decided on here or in galaxy.yml's build_ignore.
SHIPPED = {
    "CHANGELOG.md",
    "FILES.json",
    "LICENSE",
    "LICENSES",
    "MANIFEST.json",
    "README.md",
    "changelogs",
    "docs",
    "extensions",
    "meta",
    "playbooks",
    "plugins",
    "roles",
}


def _run(argv: list[str], home: Path, **variables: str) -> str:
    env = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    env.update(ANSIBLE_HOME=str(home), ANSIBLE_LOCAL_TEMP=str(home / "tmp"), **variables)
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The collection, built, and unpacked in a collections directory; gives that directory."""
    work = tmp_path_factory.mktemp("collection")
    _run([str(BIN / "ansible-galaxy"), "collection", "build", "--output-path", str(work / "out")], work)
    (archive,) = (work / "out").iterdir()
    target = work / "collections"
    options = ["--collections-path", str(target), "--no-deps", "--offline", "--force"]
    _run([str(BIN / "ansible-galaxy"), "collection", "install", str(archive), *options], work)
    with tarfile.open(archive) as tar:
        (work / "names").write_text("\n".join(tar.getnames()))
    return target


def test_only_the_ansible_side_is_shipped(installed: Path) -> None:
    names = (installed.parent / "names").read_text().splitlines()
    assert {name.split("/")[0] for name in names} <= SHIPPED
    needed = {"plugins/action/flash.py", "plugins/modules/flash.py", "meta/runtime.yml", "LICENSES/Apache-2.0.txt"}
    assert needed <= set(names)
    unwanted = [name for name in names if name.endswith((".pyc", ".img", ".tar.gz", ".log")) or "__pycache__" in name]
    assert unwanted == []


def test_documentation_is_found_in_the_archive_alone(installed: Path) -> None:
    argv = [str(BIN / "ansible-doc"), "--json", "--type", "module", "jumpstarter.lab.flash"]
    shown = json.loads(_run(argv, installed.parent, ANSIBLE_COLLECTIONS_PATH=str(installed)))
    doc = shown["jumpstarter.lab.flash"]["doc"]
    assert Path(doc["filename"]).is_relative_to(installed)
    assert "src" in doc["options"]


def test_versions_agree() -> None:
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert galaxy["version"] == project["version"]
    runtime = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text())
    assert runtime["requires_ansible"] == ">=2.19.0"


def test_every_action_is_in_the_action_group() -> None:
    runtime = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text())
    actions = sorted(path.stem for path in (ROOT / "plugins" / "action").glob("[a-z]*.py"))
    assert runtime["action_groups"]["lab"] == actions


def test_every_file_says_its_licence() -> None:
    """plugins/ is GPL-3.0-or-later, Python elsewhere Apache-2.0, in the first lines of each file."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.sh"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    wrong = []
    for name in listed:
        path = ROOT / name
        if not path.exists() or path.stat().st_size == 0 or name.startswith(VERBATIM):
            continue
        head = "\n".join(path.read_text().splitlines()[:8])
        gpl = name.startswith(("plugins/", "playbooks/"))
        licences = ("GPL-3.0-or-later", "GNU General Public License") if gpl else ("Apache-2.0", "GPL-3.0-or-later")
        if not any(licence in head for licence in licences):
            wrong.append(name)
    assert wrong == []


def test_the_collection_is_linked_into_this_environment(tmp_path: Path) -> None:
    argv = [str(BIN / "ansible-doc"), "--json", "--type", "module", "jumpstarter.lab.flash"]
    shown = json.loads(_run(argv, tmp_path))
    found = Path(shown["jumpstarter.lab.flash"]["doc"]["filename"])
    assert found.resolve() == ROOT / "plugins" / "modules" / "flash.py"
