# SPDX-License-Identifier: Apache-2.0
"""Run by test_extras: imports packages, each in a process of its own, where other modules cannot be found.

Reads JSON {package: [blocked top-level modules]}, prints JSON {package: [problems]}. The runtime is imported once and
the process forked, because twenty starts of Python would take longer than the tests themselves.
"""

from __future__ import annotations

import importlib
import importlib.abc
import json
import os
import pkgutil
import sys
import traceback
from typing import Any

import jumpstarter.client
import jumpstarter.driver  # noqa: F401 - what every driver may count on


class _Block(importlib.abc.MetaPathFinder):
    def __init__(self, names: set[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])


def _problems(package: str, blocked: set[str]) -> list[str]:
    sys.meta_path.insert(0, _Block(blocked))
    found = []
    names = [package]
    for info in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        names.append(info.name)
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            found.append(f"{name}: {traceback.format_exc(limit=-3)}")
    return found


def main() -> None:
    """Fork once per package."""
    results = {}
    for package, blocked in json.load(sys.stdin).items():
        near, far = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(near)
            with os.fdopen(far, "w") as out:
                json.dump(_problems(package, set(blocked)), out)
            os._exit(0)
        os.close(far)
        with os.fdopen(near) as answer:
            results[package] = json.load(answer)
        os.waitpid(child, 0)
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
