# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action of the module uboot."""

from __future__ import annotations

import typing as t

from ansible_collections.jumpstarter.lab.plugins.plugin_utils._action import LabAction


class ActionModule(LabAction):
    """Runs commands at the U-Boot prompt, reads and sets its environment."""

    OP = "uboot"
    SPEC: t.ClassVar[dict[str, dict[str, t.Any]]] = {
        "driver": {"type": "str", "default": "uboot"},
        "commands": {"type": "list", "elements": "str"},
        "env": {"type": "dict"},
        "get_env": {"type": "list", "elements": "str"},
        "version": {"type": "bool", "default": False},
        "boot": {"type": "bool", "default": True},
        "timeout": {"type": "str", "default": "1m"},
    }
    RULES: t.ClassVar[dict[str, t.Any]] = {"required_one_of": [("commands", "env", "get_env", "version")]}
    DURATIONS = ("timeout",)

    def perform(self, options: dict[str, t.Any]) -> dict[str, t.Any]:
        if "env" in options:
            options["env"] = {str(name): str(value) for name, value in options["env"].items()}
        return self.ask(self.OP, options)
