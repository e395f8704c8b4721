# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Actions about a lab's controller rather than a device. This plugin util is **PRIVATE** to the collection."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.jumpstarter.lab.plugins.plugin_utils._action import LabAction
from ansible_collections.jumpstarter.lab.plugins.plugin_utils._reach import CLIENT, CLIENT_CONFIG, find_file

CONTROLLER_SPEC: dict[str, dict[str, t.Any]] = {
    "client": {"type": "str"},
    "client_config": {"type": "path"},
}
CONTROLLER_RULES: dict[str, t.Any] = {"mutually_exclusive": [("client", "client_config")]}


def client_arguments(
    host: str, given: t.Mapping[str, t.Any], variables: t.Mapping[str, t.Any], folders: t.Sequence[str]
) -> dict[str, str]:
    """Which client configuration the agent shall use: by the task's own options, else by host variables.

    :returns: ``client`` or ``client_config`` (an absolute path), or nothing: then the agent takes the current one.
    :raises ReachError: the file is not there.
    """
    for source, alias, path in ((given, "client", "client_config"), (variables, CLIENT, CLIENT_CONFIG)):
        if source.get(path):
            return {"client_config": find_file(host, path, source[path], folders)}
        if source.get(alias):
            return {"client": str(source[alias])}
    return {}


class ControllerAction(LabAction):
    """An action that asks the controller and needs no lease."""

    def ask(self, op: str, args: dict[str, t.Any]) -> dict[str, t.Any]:
        rest = {name: value for name, value in args.items() if name not in ("client", "client_config")}
        names = (CLIENT, CLIENT_CONFIG)
        variables = {name: self._templar.template(self._vars[name]) for name in names if name in self._vars}
        return super().ask(op, {**rest, **client_arguments(self.host, args, variables, self.folders())})

    def _reach(self) -> dict[str, t.Any]:
        return {}


SUBJECT_SPEC: dict[str, dict[str, t.Any]] = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "labels": {"type": "dict"},
    "username": {"type": "str"},
    "save": {"type": "path"},
    "rotate": {"type": "bool", "default": False},
    "force": {"type": "bool", "default": False},
}
"""What clients and exporters have in common."""


class SubjectAction(ControllerAction):
    """Makes, changes or removes a client or exporter, and keeps the file with its token."""

    def perform(self, options: dict[str, t.Any]) -> dict[str, t.Any]:
        if "labels" in options:
            options["labels"] = {str(key): _label(value) for key, value in options["labels"].items()}
        if "save" in options:
            options["save"] = os.path.abspath(os.path.expanduser(str(options["save"])))
        return self.ask(self.OP, options)


def _label(value: t.Any) -> str:
    """YAML's true, false and numbers as they are written."""
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)
