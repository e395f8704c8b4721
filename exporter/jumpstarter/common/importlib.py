# SPDX-License-Identifier: Apache-2.0
"""Import a class by its dotted path, if the allow list says so.

An exporter names the client class of each of its drivers. The client must not import whatever a peer names: it goes
by an allow list of globs over the full dotted path (`*` crosses dots, matching is case-sensitive), and by a base
class that the result must have.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from jumpstarter.common.exceptions import MissingDriverError

__all__ = ["import_class", "registered_patterns"]

#: Entry-point group in which distributions register the drivers they bring.
ENTRY_POINT_GROUP = "jumpstarter.drivers"

#: Client classes of this package itself are always trusted.
_OWN = ("jumpstarter.client.*", "jumpstarter_driver_composite.client.*")


@cache
def registered_patterns() -> tuple[str, ...]:
    """Allow-list globs for the packages that registered a driver here ("jumpstarter_driver_power.*", ...).

    The default for direct connections: what the user installed as a driver is trusted, what a peer merely names is
    not.
    """
    from importlib.metadata import entry_points

    packages = {entry.module.partition(".")[0] for entry in entry_points(group=ENTRY_POINT_GROUP)}
    return (*_OWN, *(f"{package}.*" for package in sorted(packages)))


def import_class(
    class_path: str, allow: Iterable[str] = (), unsafe: bool = False, *, base: type | None = None
) -> type[Any]:
    """Return the class at `class_path` ("package.module.Class").

    allow: globs, at least one of which must match; client classes of this package need none. unsafe: skip the allow
    list. base: class the result must derive from (checked in both cases).

    Raises `ImportError` for something that is no dotted path, `MissingDriverError` when the path is not allowed, the
    module or the attribute does not exist, or what is there is no class (of the base).
    """
    module_path, dot, class_name = class_path.rpartition(".")
    if not dot or not module_path or not class_name:
        raise ImportError(f'"{class_path}" is not a dotted path to a class (expected "package.module.Class")')
    if not unsafe and not any(fnmatchcase(class_path, pattern) for pattern in (*_OWN, *allow)):
        raise MissingDriverError(
            f'"{class_path}" is not allowed here: no pattern of the allow list matches it '
            "(drivers.allow in the client configuration, or JMP_DRIVERS_ALLOW)",
            class_path,
        )
    try:
        module = _running_script(module_path) or import_module(module_path)
    except ModuleNotFoundError as error:
        # Tell "this module is not there" from "it is there and something it needs is not".
        missing = error.name or ""
        if module_path == missing or module_path.startswith(f"{missing}."):
            raise MissingDriverError(f'"{class_path}" is not installed: no module "{missing}"', class_path) from error
        from jumpstarter.common.extras import install_command

        what = f'"{class_path}" cannot be imported: it needs the module "{missing}", which is not installed'
        command = install_command(module_path)
        raise MissingDriverError(f"{what}; {command}" if command else what, class_path) from error
    except ImportError as error:
        raise MissingDriverError(f'"{class_path}" cannot be imported: {error}', class_path) from error
    found = getattr(module, class_name, None)
    if found is None:
        raise MissingDriverError(f'module "{module_path}" has no class "{class_name}"', class_path)
    if not isinstance(found, type):
        raise MissingDriverError(f'"{class_path}" is not a class', class_path)
    if base is not None and not issubclass(found, base):
        raise MissingDriverError(f'"{class_path}" is not a {base.__name__}', class_path)
    return found


def _running_script(module_path: str) -> ModuleType | None:
    """The program itself when it runs as ``python NAME.py`` and NAME is asked for.

    Importing it would execute the script a second time, in the middle of its own ``serve()``.
    """
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    if main is None or not file or getattr(main, "__spec__", None) is not None or module_path in sys.modules:
        return None
    folder, name = os.path.split(os.path.abspath(file))
    return main if name == f"{module_path}.py" and sys.path and os.path.abspath(sys.path[0]) == folder else None
