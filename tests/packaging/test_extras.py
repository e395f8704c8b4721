# SPDX-License-Identifier: Apache-2.0
"""Extras keep dependencies apart: a driver needs what its own extra brings, and says how to get it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from jumpstarter.common import extras as extras_module
from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.config.exporter import ExporterConfigV1Alpha1
from jumpstarter.driver import Driver, export

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PACKAGES = sorted(path.parent.name for path in ROOT.glob("drivers/jumpstarter_*/__init__.py"))
# Not of a driver: what the lab itself and its developers install.
OTHERS = {"all", "ansible", "controller", "dev"}


def _extra(package: str) -> str:
    return package.removeprefix("jumpstarter_driver_").removeprefix("jumpstarter_").replace("_", "-")


def _name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", Requirement(requirement).name).lower()


@cache
def _closure(distribution: str, wanted: frozenset[str] = frozenset()) -> frozenset[str]:
    """A distribution and all that it brings along."""
    found = {distribution}
    try:
        lines = requires(distribution) or []
    except PackageNotFoundError:
        lines = []
    for line in lines:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
            name = _name(line)
            if name != distribution:
                found |= _closure(name, frozenset(requirement.extras))
    return frozenset(found)


def _brings(extra: str) -> set[str]:
    """Distributions that an extra of ours brings."""
    found: set[str] = set()
    for line in EXTRAS.get(extra, []):
        requirement = Requirement(line)
        if _name(line) == PROJECT["name"]:
            found |= set().union(*(_brings(inner) for inner in requirement.extras))
        else:
            found |= _closure(_name(line), frozenset(requirement.extras))
    return found


@cache
def _owners() -> dict[str, set[str]]:
    """The distributions of each top-level module."""
    found = packages_distributions().items()
    return {module: {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners} for module, owners in found}


def _modules(distributions: set[str]) -> set[str]:
    """Top-level modules of distributions."""
    return {module for module, owners in _owners().items() if owners & distributions}


def test_importing_a_driver_needs_nothing_of_another_drivers_extra() -> None:
    base = set().union(
        *(_closure(_name(line), frozenset(Requirement(line).extras)) for line in PROJECT["dependencies"])
    )
    everything = set().union(*(_brings(extra) for extra in EXTRAS if extra not in ("all", "dev")))
    blocked = {
        package: sorted(_modules(everything - _brings(_extra(package)) - base) - {"jumpstarter"})
        for package in PACKAGES
    }
    assert len(blocked["jumpstarter_driver_power"]) > 20, "the test blocks hardly anything"
    argv = [sys.executable, str(Path(__file__).with_name("extras_zygote.py"))]
    done = subprocess.run(argv, input=json.dumps(blocked), capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    problems = {package: found for package, found in json.loads(done.stdout).items() if found}
    assert not problems, "\n".join(line for found in problems.values() for line in found)


def test_every_extra_of_a_driver_is_in_all_and_belongs_to_a_package() -> None:
    in_all = set().union(*(Requirement(line).extras for line in EXTRAS["all"]))
    drivers = set(EXTRAS) - OTHERS
    assert drivers <= in_all, f"not in [all]: {sorted(drivers - in_all)}"
    assert drivers <= {_extra(package) for package in PACKAGES}


def test_every_package_is_in_the_wheel_and_registers_its_drivers() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert [package for package in PACKAGES if f"drivers/{package}" not in listed] == []
    for name, target in project["project"]["entry-points"]["jumpstarter.drivers"].items():
        module, _, attribute = target.partition(":")
        assert issubclass(getattr(import_module(module), attribute), Driver), name


def _all_classes() -> list[type[Driver]]:
    classes = []
    for package in PACKAGES:
        if find_spec(f"{package}.driver") is not None:
            module = import_module(f"{package}.driver")
            classes += [
                value
                for value in vars(module).values()
                if isinstance(value, type) and issubclass(value, Driver) and value.__module__.startswith(package)
            ]
    return classes


def test_what_a_driver_says_it_needs_comes_with_its_extra() -> None:
    for cls in _all_classes():
        package = cls.__module__.partition(".")[0]
        for needed in cls.needs:
            assert find_spec(needed) is not None, f"{cls.__name__} needs {needed}, which nothing brings"
            assert needed.partition(".")[0] in _modules(_brings(_extra(package))), (
                f"{cls.__name__} needs {needed}, which jumpstarter-lab[{_extra(package)}] does not bring"
            )


class Wanting(Driver):
    """A driver of a family with an extra that is not installed."""

    needs = ("no_such_module_of_the_tests",)

    @classmethod
    def client(cls) -> str:
        return "jumpstarter.client.DriverClient"

    @export
    def use(self) -> None:
        """Import it late."""
        import no_such_module_of_the_tests  # type: ignore[import-not-found]  # noqa: F401


def test_a_missing_extra_is_told_when_the_exporter_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = "jumpstarter_driver_uboot"
    monkeypatch.setattr(f"{package}.Wanting", Wanting, raising=False)
    config = tmp_path / "board.yaml"
    config.write_text(
        "apiVersion: jumpstarter.dev/v1alpha1\nkind: ExporterConfig\nmetadata: {namespace: default, name: bench}\n"
        f'endpoint: ""\ntoken: ""\nexport:\n  it:\n    type: {package}.Wanting\n'
    )
    with pytest.raises(ConfigurationError) as caught:
        ExporterConfigV1Alpha1.load_path(config).instantiate()
    text = str(caught.value)
    assert f"{config}: driver it: type {package}.Wanting needs the module no_such_module_of_the_tests" in text
    assert text.endswith("pip install 'jumpstarter-lab[uboot]'") and "\n" not in text


def test_an_import_that_fails_in_a_driver_names_its_extra() -> None:
    code = compile("import no_such_module_of_the_tests", "driver.py", "exec")
    with pytest.raises(ImportError) as caught:
        exec(code, {"__name__": "jumpstarter_driver_uboot.driver"})
    assert extras_module.install_command_for(caught.value) == "pip install 'jumpstarter-lab[uboot]'"
    with pytest.raises(ImportError) as foreign:
        exec(code, {"__name__": "somebody_else"})
    assert extras_module.install_command_for(foreign.value) == ""
