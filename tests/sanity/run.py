# SPDX-License-Identifier: Apache-2.0
"""Run ``ansible-test sanity`` on the collection as it would be shipped.

ansible-test insists on a path that ends in ansible_collections/NAMESPACE/NAME and on version control there, so the
built archive is unpacked below build/sanity and gets a git repository of its own. Its virtual environments are made
with a pip bootstrap of ours: the one it would download needs more of the network than PyPI.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "sanity"
HERE = Path(__file__).resolve().parent
# PowerShell is not used here, and its test needs an interpreter that Debian does not have.
SKIPPED = ("pslint",)


def pip_versions() -> list[str]:
    """Versions of pip the installed ansible-test bootstraps its environments with."""
    spec = importlib.util.find_spec("ansible_test")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("sanity: ansible-core is not installed in this environment; run 'make dev'")
    source = Path(next(iter(spec.submodule_search_locations))) / "_internal" / "python_requirements.py"
    return sorted(set(re.findall(r"\bpip='([0-9.]+)'", source.read_text())))


def lay_out(work: Path, env: dict[str, str]) -> Path:
    """Build the collection, unpack it below *work* and return where it is."""
    collection = work / "ansible_collections" / "jumpstarter" / "lab"
    shutil.rmtree(collection, ignore_errors=True)
    collection.mkdir(parents=True)
    archives = work / "archive"
    shutil.rmtree(archives, ignore_errors=True)
    galaxy = str(Path(sys.executable).with_name("ansible-galaxy"))
    build = [galaxy, "collection", "build", "--output-path", str(archives)]
    subprocess.run(build, cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
    (archive,) = archives.glob("jumpstarter-lab-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(collection, filter="data")
    for ignored in HERE.glob("ignore-*.txt"):
        target = collection / "tests" / "sanity" / ignored.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ignored, target)
    subprocess.run(["git", "init", "--quiet", str(collection)], env=env, check=True)
    return collection


def environment(work: Path) -> dict[str, str]:
    """The environment ansible-test runs in: a home of its own, kept between runs for its virtual environments."""
    home = work / "home"
    cache = home / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    for version in pip_versions():
        shutil.copy(HERE / "pip_bootstrap.py", cache / f"get_pip_{version.replace('.', '_')}.py")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # Variables of an outer git command or test run would point the tools at the wrong repository or collection.
    env = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "ANSIBLE_", "PYTEST_"))}
    return {**env, "HOME": str(home), "PATH": path, "PIP_CACHE_DIR": str(work / "pip-cache")}


def run(work: Path = WORK, arguments: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ansible-test sanity; the whole output is in the result and in *work*/ansible-test.log."""
    env = environment(work)
    collection = lay_out(work, env)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    argv = [str(Path(sys.executable).with_name("ansible-test")), "sanity", "--python", version, "--color", "no"]
    for name in SKIPPED:
        argv += ["--skip-test", name]
    done = subprocess.run(
        [*argv, *(arguments or [])],
        cwd=collection,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    (work / "ansible-test.log").write_text(done.stdout)
    return done


def main() -> int:
    """Command line: where to work, and further arguments for ansible-test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, default=WORK, help="folder for environments and the log")
    options, arguments = parser.parse_known_args()
    work: Path = options.work.absolute()
    done = run(work, arguments)
    wanted = ("ERROR", "FATAL", "WARNING", "Running sanity test")
    print("\n".join(line for line in done.stdout.splitlines() if line.startswith(wanted)))
    print(f"ansible-test sanity: {'passed' if done.returncode == 0 else 'FAILED'}; {work / 'ansible-test.log'}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
