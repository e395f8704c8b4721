# SPDX-License-Identifier: Apache-2.0
"""Test the project on every supported pair of Python and ansible-core, and print what passed where.

``make test`` covers the Python it is started with. This covers the others, one virtual environment per pair below
build/matrix/, with the quick tests: no emulated board is booted. A pair that cannot be made, because its interpreter or
its ansible-core is not to be had, is reported as missing and counts as a failure unless --allow-missing is given.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "matrix"

PARTS: dict[str, tuple[str, ...]] = {
    "core": ("-m", "pytest", "tests/core"),
    "plugins": ("-m", "pytest", "tests/plugins"),
    "agent": ("-m", "pytest", "tests/agent"),
    "e2e": ("-m", "pytest", "-m", "not qemu", "tests/e2e"),
    "packaging": ("-m", "pytest", "tests/packaging"),
    "sanity": ("tests/sanity/run.py",),
    "lint": ("-m", "ansiblelint", "--offline"),
}
# ansible-test downloads for minutes, and ansible-lint reads the same files whatever the Python: on request.
USUAL = ("core", "plugins", "agent", "e2e", "packaging")
TEST_TOOLS = ("hatchling", "pytest", "pytest-timeout", "pytest-xdist")


class Missing(Exception):
    """This machine cannot make the pair; the text says what is not there."""


@dataclass(frozen=True)
class Pair:
    """A Python series and an ansible-core series to be tested together."""

    python: str
    core: str

    @property
    def name(self) -> str:
        """As in the table and as the folder of the environment."""
        return f"py{self.python}-core{self.core}"

    @property
    def requirement(self) -> str:
        """For pip; the bounds let pip take a release candidate of this series while there is no release."""
        major, minor = self.core.split(".")
        return f"ansible-core>={self.core}.0rc1,<{major}.{int(minor) + 1}.0.dev0"


PAIRS = (
    Pair("3.11", "2.19"),
    Pair("3.12", "2.20"),
    Pair("3.12", "2.21"),
    Pair("3.13", "2.21"),
    Pair("3.13", "2.22"),
)


@dataclass
class Row:
    """What became of a pair: a word per part, or why there is nothing."""

    pair: Pair
    versions: str = ""
    missing: str = ""
    results: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether a part of it did not pass."""
        return any(not result.startswith("passed") for result in self.results.values())


def interpreters(series: str) -> Iterator[Path]:
    """Places where a Python of *series* may be: on PATH, and of pyenv, the newest first."""
    if found := shutil.which(f"python{series}"):
        yield Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    installed = (pyenv / "versions").glob(f"{series}.*/bin/python")
    yield from sorted(installed, key=lambda path: [int(n) for n in re.findall(r"\d+", path.parts[-3])], reverse=True)


def interpreter(series: str) -> Path:
    """A Python of *series* that runs; pyenv's stand-ins for versions that are not selected do not.

    :raises Missing: there is none.
    """
    asked = "import sys; print('%d.%d' % sys.version_info[:2])"
    for path in interpreters(series):
        done = subprocess.run([path, "-c", asked], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() == series:
            return path
    raise Missing(f"no Python {series} on PATH or below pyenv")


def test_tools(names: Iterable[str] = TEST_TOOLS) -> list[str]:
    """Requirements of the tools, as the extra ``dev`` has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = set(names)
    return [line for line in project["optional-dependencies"]["dev"] if re.split(r"[^\w-]", line)[0] in wanted]


def environment(folder: Path) -> dict[str, str]:
    """Variables for what runs in the environment: its programs first, nothing of an outer run."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PYTEST_", "PYTHON"))}
    path = os.pathsep.join([str(folder / "bin"), os.environ.get("PATH", os.defpath)])
    return {**env, "PATH": path, "VIRTUAL_ENV": str(folder)}


def run(argv: list[str], folder: Path, log: Path) -> subprocess.CompletedProcess[str]:
    """Run *argv* in the environment *folder*; what it says goes to *log* and into the result."""
    with log.open("w") as out:
        code = subprocess.run(
            argv, cwd=ROOT, env=environment(folder), stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False
        ).returncode
    return subprocess.CompletedProcess(argv, code, log.read_text(errors="replace"))


def make(pair: Pair, parts: Iterable[str]) -> Path:
    """Make or refresh the environment of *pair* and return its folder.

    :raises Missing: no such interpreter, or pip finds no such ansible-core for it.
    """
    base = interpreter(pair.python)
    folder = BUILD / pair.name
    python = str(folder / "bin" / "python")
    folder.mkdir(parents=True, exist_ok=True)
    steps = [] if Path(python).exists() else [[str(base), "-m", "venv", str(folder)]]
    tools = test_tools((*TEST_TOOLS, "ansible-lint") if "lint" in parts else TEST_TOOLS)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "5"]
    steps += [
        [*pip, pair.requirement],
        [*pip, pair.requirement, "--editable", ".[all]", *tools],
        [python, "tools/link_collection.py"],
    ]
    for step in steps:
        done = run(step, folder, folder / "install.log")
        if done.returncode != 0:
            reason = next((line for line in done.stdout.splitlines() if line.startswith("ERROR")), "see its log")
            raise Missing(f"{' '.join(step[1:5])} ...: {reason} ({folder / 'install.log'})")
    return folder


def versions(folder: Path) -> str:
    """The exact versions in the environment."""
    asked = (
        "import platform, importlib.metadata as m; "
        "print(platform.python_version(), m.version('ansible-core'), m.version('grpcio'), m.version('anyio'), sep=', ')"
    )
    done = run([str(folder / "bin" / "python"), "-c", asked], folder, folder / "versions.log")
    return done.stdout.strip()


def run_part(part: str, folder: Path, workers: str) -> str:
    """Run one part; "passed" or "FAILED" with the closing line of the tool."""
    argv = [str(folder / "bin" / "python"), *PARTS[part]]
    if "pytest" in argv:
        # Each environment has its own cache: two Pythons would spoil each other's.
        argv += ["-q", "-n", workers, "--dist", "loadgroup", "-o", f"cache_dir={folder / 'pytest-cache'}"]
    if part == "sanity":
        argv += ["--work", str(folder / "sanity")]
    begin = time.monotonic()
    done = run(argv, folder, folder / f"{part}.log")
    last = next((line for line in reversed(done.stdout.splitlines()) if line.strip(" =")), "").strip(" =")
    word = "passed" if done.returncode == 0 else "FAILED"
    print(f"  {part}: {word} in {time.monotonic() - begin:.0f} s: {last}", flush=True)
    counted = re.search(r"(\d+) passed", last)
    return f"{word} {counted[1]}" if counted and word == "passed" else word


def table(rows: list[Row], parts: tuple[str, ...]) -> str:
    """The rows as a Markdown table."""
    heads = ["pair", "Python, core, grpcio, anyio", *parts]
    body = []
    for row in rows:
        told = [f"missing: {row.missing}"] if row.missing else [row.results.get(part, "-") for part in parts]
        body.append([row.pair.name, row.versions or "-", *told])
    lines = [heads, ["---"] * len(heads), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> int:
    """Command line; 0 when everything that was asked for passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [pair.name for pair in PAIRS]
    parser.add_argument("pairs", nargs="*", metavar="PAIR", help=f"only these of {', '.join(names)}")
    parser.add_argument("--parts", default=",".join(USUAL), help=f"of {','.join(PARTS)}; default %(default)s")
    parser.add_argument("--workers", default="2", help="tests at the same time; default %(default)s")
    parser.add_argument("--allow-missing", action="store_true", help="succeed although a pair could not be made")
    options = parser.parse_args()
    parts = tuple(options.parts.split(","))
    if unknown := [name for name in options.pairs if name not in names] + [part for part in parts if part not in PARTS]:
        parser.error(f"unknown: {', '.join(unknown)}")
    rows = []
    for pair in PAIRS:
        if options.pairs and pair.name not in options.pairs:
            continue
        row = Row(pair)
        rows.append(row)
        print(pair.name, flush=True)
        try:
            folder = make(pair, parts)
        except Missing as error:
            row.missing = str(error)
            print(f"  missing: {error}", flush=True)
            continue
        row.versions = versions(folder)
        for part in parts:
            row.results[part] = run_part(part, folder, options.workers)
    print("\n" + table(rows, parts))
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "matrix.md").write_text(table(rows, parts) + "\n")
    print(f"\nlogs: {BUILD}")
    missing = any(row.missing for row in rows) and not options.allow_missing
    return 1 if missing or any(row.failed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
