# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action of the module operation."""

from __future__ import annotations

import typing as t

from ansible_collections.jumpstarter.lab.plugins.plugin_utils._action import LabAction


class ActionModule(LabAction):
    """Waits for, looks at or cancels work that was started with ``wait: false``."""

    OP = "operation"
    SPEC: t.ClassVar[dict[str, dict[str, t.Any]]] = {
        "id": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["waited", "status", "canceled"], "default": "waited"},
        "timeout": {"type": "str", "default": "30m"},
        "progress": {"type": "str", "choices": ["auto", "off", "verbose"], "default": "auto"},
    }
    DURATIONS = ("timeout",)
    VERBS: t.ClassVar[dict[str, str]] = {"waited": "wait", "canceled": "cancel", "status": "status"}

    def perform(self, options: dict[str, t.Any]) -> dict[str, t.Any]:
        return self.ask(self.OP, {**options, "state": self.VERBS[options["state"]]})
