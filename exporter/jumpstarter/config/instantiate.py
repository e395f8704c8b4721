# SPDX-License-Identifier: Apache-2.0
"""Turn the `export:` tree of a configuration into drivers.

First the whole tree is checked against the driver classes (types, fields, references) without constructing anything,
so that a mistake in the last entry does not switch anything on in the first. Then it is built children first; when a
constructor fails, what was built is closed again.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID, uuid5

from jumpstarter.common.exceptions import ConfigurationError, JumpstarterException, MissingDriverError
from jumpstarter.common.extras import install_command, missing_modules
from jumpstarter.common.importlib import ENTRY_POINT_GROUP, import_class
from jumpstarter.config.fields import Parameters, explain_value, parameters_of

if TYPE_CHECKING:
    from jumpstarter.config.exporter import ExporterConfigV1Alpha1DriverInstance as Node
    from jumpstarter.driver import Driver

logger = logging.getLogger(__name__)

COMPOSITE = "jumpstarter_driver_composite.driver.Composite"
PROXY = "jumpstarter_driver_composite.driver.Proxy"

#: Namespace of the stable driver ids. Never change it: ids would change with it.
_IDS = UUID("6f0d5d1c-5b0e-5c5e-9d53-1a9c3f6f4b7e")

#: Set by the tree itself, so never in `config:`.
_STRUCTURAL = {"children": "children:", "description": "description:", "methods_description": "methods_description:"}


class _Plan(NamedTuple):
    """A checked node: what to construct with which arguments."""

    cls: type[Driver]
    kwargs: dict[str, Any]
    parameters: Parameters
    children: dict[str, _Plan]
    path: str


def driver_id(owner: str, path: str) -> UUID:
    """The id of the driver at `path` of the exporter `owner` ("namespace/name"): the same in each run."""
    return uuid5(_IDS, f"{owner}/{path}")


def build(root: Node, *, owner: str, where: str) -> Driver:
    """Check and build the tree under `root`. See `ExporterConfigV1Alpha1.instantiate` for the errors."""
    _check_references(root, where)
    plan = _check(root, "", where)
    built: list[Driver] = []
    try:
        driver = _construct(plan, owner, where, built)
        _check_aliases(driver, where)
    except BaseException:
        _close(built)
        raise
    _settle_ids(driver, owner, "", set(map(id, built)))
    return driver


# --- checking --------------------------------------------------------------------------------------------------


def _fail(where: str, path: str, what: str) -> ConfigurationError:
    return ConfigurationError(f"{where}: driver {path or '(root)'}: {what}")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _check(node: Node, path: str, where: str) -> _Plan:
    if node.type is not None and node.ref is not None:
        # Jumpstarter takes it so, and configurations that do it exist.
        logger.warning("%s: driver %s: has both type: and ref:; ref: %s is ignored", where, path, node.ref)
    if node.type == "":
        raise _fail(where, path, "type: is empty; leave it out for a group of drivers")
    children = {name: _check(child, _join(path, name), where) for name, child in node.children.items()}
    cls = _driver_class(node, path, where)
    if missing := missing_modules(cls.needs):
        # Found now, and not in the middle of somebody's lease.
        problem = f"type {_type_of(node)} needs the module {missing[0]}, which is not installed"
        raise _fail(where, path, "; ".join(filter(None, (problem, install_command(_type_of(node))))))
    parameters = parameters_of(cls)
    config = node.config
    if node.type is None and node.ref is not None:
        if children:
            raise _fail(where, path, "an alias (ref:) takes no children:")
        if node.config:
            raise _fail(where, path, "an alias (ref:) takes no config:")
        config = {"ref": node.ref}
    elif node.type is None and node.config:
        raise _fail(where, path, "config: without type: (a group of drivers has no settings)")
    kwargs = _arguments(config, parameters, path, where)
    for key, value in (
        ("children", children),
        ("description", node.description),
        ("methods_description", node.methods_description),
    ):
        if value and not parameters.accepts(key):
            raise _fail(where, path, f"{_type_of(node)} takes no {key}:")
    if node.description is not None:
        kwargs["description"] = node.description
    if node.methods_description:
        kwargs["methods_description"] = dict(node.methods_description)
    return _Plan(cls, kwargs, parameters, children, path)


def _type_of(node: Node) -> str:
    return node.type or (PROXY if node.ref is not None else COMPOSITE)


def _driver_class(node: Node, path: str, where: str) -> type[Driver]:
    from jumpstarter.driver import Driver

    class_path = _type_of(node)
    try:
        # The exporter's own file names its drivers: no allow list.
        return import_class(class_path, unsafe=True, base=Driver)
    except MissingDriverError as error:
        raise _fail(where, path, f"type {_with_hint(error.message, class_path)}") from None
    except ImportError as error:
        raise _fail(where, path, f"type {error}") from None
    except JumpstarterException as error:
        raise _fail(where, path, f"type {class_path} cannot be used: {error}") from error
    except Exception as error:  # a module may fail in any way while it is imported
        logger.debug("importing %s", class_path, exc_info=True)
        raise _fail(where, path, f"type {class_path} fails to import: {type(error).__name__}: {error}") from None


def _with_hint(problem: str, class_path: str) -> str:
    # What the import itself says already names the command when a dependency is missing.
    return problem if "pip install" in problem else f"{problem}; {_hint(class_path)}"


def _hint(class_path: str) -> str:
    """What to do about a driver type that cannot be imported."""
    from importlib.metadata import entry_points

    module, _, name = class_path.rpartition(".")
    if hasattr(sys.modules.get(module), name):  # import_class has been there
        return "a type is a class that derives from jumpstarter.driver.Driver (`jmp driver list` shows those here)"
    registered = [f"{entry.module}.{entry.attr}" for entry in entry_points(group=ENTRY_POINT_GROUP)]
    close = get_close_matches(class_path, registered, n=1, cutoff=0.9)
    parts = [f'did you mean "{close[0]}"?'] if close and close[0] != class_path else []
    if command := install_command(class_path):
        parts.append(command)
    elif not parts:
        parts.append("install the package that brings it (`jmp driver list` shows what is here)")
    return ", or ".join(parts)


def _arguments(config: Mapping[str, Any], parameters: Parameters, path: str, where: str) -> dict[str, Any]:
    """`config` checked and converted to the types of the driver's fields."""
    kwargs: dict[str, Any] = {}
    for key, value in config.items():
        if key in _STRUCTURAL:
            raise _fail(where, path, f"config.{key}: belongs beside config:, as {_STRUCTURAL[key]}")
        if not parameters.accepts(key):
            known = sorted(set(parameters.names) - set(_STRUCTURAL))
            close = get_close_matches(str(key), known, n=1)
            hint = f'did you mean "{close[0]}"?' if close else f"it has {', '.join(known)}"
            raise _fail(where, path, f"config.{key}: {parameters.owner} has no such field; {hint}")
        converted, problem = explain_value(parameters.names.get(key), value)
        if problem:
            raise _fail(where, path, f"config.{key}: {problem}")
        kwargs[key] = converted
    missing = [name for name in parameters.required if name not in kwargs and name not in _STRUCTURAL]
    if missing:
        raise _fail(where, path, f"config.{missing[0]}: is required by {parameters.owner}" + _others(missing))
    return kwargs


def _others(missing: list[str]) -> str:
    return f" (and so are {', '.join(missing[1:])})" if len(missing) > 1 else ""


def _nodes(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    yield path, node
    for name, child in node.children.items():
        yield from _nodes(child, _join(path, name))


def _check_references(root: Node, where: str) -> None:
    """Each `ref` must lead to a driver.

    A driver with a type may bring children of its own ("qemu.power"), so a reference below one is left to the built
    tree; a reference to nowhere in the written tree, to itself or around in a circle is an error here.
    """
    nodes = dict(_nodes(root))
    for path, node in nodes.items():
        seen = {path}
        target: str = path
        current: Node | None = node
        while current is not None and current.type is None and current.ref is not None:
            target = current.ref
            if target in seen:
                raise _fail(where, path, f'ref "{node.ref}" leads back to itself')
            seen.add(target)
            current = nodes.get(target)
            if current is None and not _may_exist(target, nodes):
                known = ", ".join(sorted(p for p in nodes if p and p != path)) or "no other driver"
                raise _fail(where, path, f'ref "{target}" names no driver; there is {known}')


def _may_exist(path: str, nodes: Mapping[str, Node]) -> bool:
    """Whether a driver above `path` could have brought it."""
    parent = path.rpartition(".")[0]
    while parent:
        if parent in nodes:
            return nodes[parent].type is not None or nodes[parent].ref is not None
        parent = parent.rpartition(".")[0]
    return False


# --- building --------------------------------------------------------------------------------------------------


def _construct(plan: _Plan, owner: str, where: str, built: list[Driver]) -> Driver:
    children = {name: _construct(child, owner, where, built) for name, child in plan.children.items()}
    kwargs = dict(plan.kwargs)
    if children:
        kwargs["children"] = children
    if plan.parameters.accepts("uuid"):
        kwargs.setdefault("uuid", driver_id(owner, plan.path))
    try:
        driver = plan.cls(**kwargs)
    except ConfigurationError as error:
        raise _fail(where, plan.path, str(error)) from error
    except Exception as error:  # a driver's constructor may fail in any way; the user gets one line
        logger.debug("constructing driver %s", plan.path, exc_info=True)
        raise _fail(where, plan.path, _explain(error, plan.cls)) from error
    built.append(driver)
    return driver


def _explain(error: Exception, cls: type) -> str:
    """One line for what a constructor raised."""
    name = f"{cls.__module__}.{cls.__qualname__}"
    if isinstance(error, PermissionError):
        what = f"no permission for {error.filename}" if error.filename else f"no permission: {error}"
        return f"{name}: {what} (is the user in the device's group?)"
    if isinstance(error, OSError) and error.strerror:
        return f"{name}: {error.filename + ': ' if error.filename else ''}{error.strerror}"
    if isinstance(error, ImportError):
        return f"{name}: {error}; {_hint(name)}"
    if isinstance(error, (ValueError, JumpstarterException)):
        return f"{name}: {' '.join(str(error).split())}"
    return f"{name}: {type(error).__name__}: {' '.join(str(error).split())}"


def _check_aliases(root: Driver, where: str) -> None:
    """References below drivers that bring their own children can only be followed now."""
    try:
        root.enumerate()
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def _close(built: list[Driver]) -> None:
    """Close what a failed build left. A driver closes its own children."""
    below = {id(child) for driver in built for child in driver.children.values()}
    for driver in [driver for driver in reversed(built) if id(driver) not in below]:
        try:
            driver.close()
        except Exception:
            # The first error is the one to report; this one must not hide it.
            logger.warning("closing %s after a failed start", type(driver).__name__, exc_info=True)


def _settle_ids(driver: Driver, owner: str, path: str, explicit: set[int]) -> None:
    """Give stable ids to the children that drivers brought themselves ("qemu.power")."""
    for name, child in driver.children.items():
        child_path = _join(path, name)
        if id(child) not in explicit and dataclasses.is_dataclass(child):
            explicit.add(id(child))
            child.uuid = driver_id(owner, child_path)
        _settle_ids(child, owner, child_path, explicit)
