# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action of the module copy_from."""

from __future__ import annotations

import typing as t

from ansible_collections.jumpstarter.lab.plugins.plugin_utils._action import LabAction


class ActionModule(LabAction):
    """Copies a file from the running device to the control node."""

    OP = "copy_from"
    SPEC: t.ClassVar[dict[str, dict[str, t.Any]]] = {
        "driver": {"type": "str", "default": "console"},
        "src": {"type": "str", "required": True},
        "dest": {"type": "path", "required": True},
        "allow_slow": {"type": "bool", "default": False},
        "timeout": {"type": "str", "default": "10m"},
        "progress": {"type": "str", "choices": ["auto", "off", "verbose"], "default": "auto"},
    }
    DURATIONS = ("timeout",)

    def perform(self, options: dict[str, t.Any]) -> dict[str, t.Any]:
        return self.ask(self.OP, {**options, "dest": self._loader.path_dwim(options["dest"])})
