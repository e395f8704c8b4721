# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action of the module storage."""

from __future__ import annotations

import typing as t

from ansible_collections.jumpstarter.lab.plugins.plugin_utils._action import LabAction


class ActionModule(LabAction):
    """Connects the device's storage to one side, or reads it back into a file."""

    OP = "storage"
    SPEC: t.ClassVar[dict[str, dict[str, t.Any]]] = {
        "driver": {"type": "str", "default": "storage"},
        "state": {"type": "str", "choices": ["host", "dut", "off", "status"]},
        "dump": {
            "type": "dict",
            "options": {"path": {"type": "path", "required": True}, "target": {"type": "str"}},
        },
        "progress": {"type": "str", "choices": ["auto", "off", "verbose"], "default": "auto"},
    }
    RULES: t.ClassVar[dict[str, t.Any]] = {
        "required_one_of": [("state", "dump")],
        "mutually_exclusive": [("state", "dump")],
    }

    def perform(self, options: dict[str, t.Any]) -> dict[str, t.Any]:
        if "dump" in options:
            dump = {name: value for name, value in options["dump"].items() if value is not None}
            options["dump"] = self._loader.path_dwim(dump["path"])
            if "target" in dump:
                options["target"] = dump["target"]
        return self.ask(self.OP, options)
