# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action of the module console."""

from __future__ import annotations

import typing as t

from ansible_collections.jumpstarter.lab.plugins.plugin_utils._action import LabAction


class ActionModule(LabAction):
    """Waits for text on the device's console, types on it, or reads its log."""

    OP = "console"
    SPEC: t.ClassVar[dict[str, dict[str, t.Any]]] = {
        "driver": {"type": "str", "default": "console"},
        "action": {"type": "str", "choices": ["expect", "send", "log", "phase", "break"], "default": "expect"},
        "pattern": {"type": "str"},
        "send": {"type": "str"},
        "enter": {"type": "bool", "default": True},
        "secret": {"type": "bool", "default": False},
        "timeout": {"type": "str", "default": "30s"},
        "since_seq": {"type": "int"},
        "lines": {"type": "int", "default": 100},
    }
    RULES: t.ClassVar[dict[str, t.Any]] = {
        "required_if": [("action", "expect", ("pattern",)), ("action", "send", ("send",))],
    }
    DURATIONS = ("timeout",)
