# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action of the module access_policy."""

from __future__ import annotations

import typing as t

from ansible_collections.jumpstarter.lab.plugins.plugin_utils._controller import (
    CONTROLLER_RULES,
    CONTROLLER_SPEC,
    ControllerAction,
)
from ansible_collections.jumpstarter.lab.plugins.plugin_utils._duration import seconds


class ActionModule(ControllerAction):
    """Makes, changes or removes an access policy."""

    OP = "access_policy"
    SPEC: t.ClassVar[dict[str, dict[str, t.Any]]] = {
        **CONTROLLER_SPEC,
        "name": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "exporters": {"type": "str", "default": ""},
        "rules": {
            "type": "list",
            "elements": "dict",
            "options": {
                "clients": {"type": "str", "default": ""},
                "priority": {"type": "int", "default": 0},
                "maximum_duration": {"type": "str"},
                "spot": {"type": "bool", "default": False},
                "description": {"type": "str", "default": ""},
            },
        },
    }
    RULES: t.ClassVar[dict[str, t.Any]] = {**CONTROLLER_RULES, "required_if": [("state", "present", ("rules",))]}

    def perform(self, options: dict[str, t.Any]) -> dict[str, t.Any]:
        for rule in options.get("rules", ()):
            longest = rule.pop("maximum_duration", None)
            rule["maximum_duration"] = None if longest is None else seconds(longest, "maximum_duration")
        return self.ask(self.OP, options)
