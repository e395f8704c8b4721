# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action of the module can."""

from __future__ import annotations

import typing as t

from ansible_collections.jumpstarter.lab.plugins.plugin_utils._action import LabAction


class ActionModule(LabAction):
    """Sends CAN frames, waits for some, and asks by ISO-TP."""

    OP = "can"
    SPEC: t.ClassVar[dict[str, dict[str, t.Any]]] = {
        "driver": {"type": "str", "default": "can"},
        "send": {"type": "list", "elements": "str"},
        "expect": {
            "type": "list",
            "elements": "dict",
            "options": {
                "id": {"type": "str", "required": True},
                "data": {"type": "str"},
                "count": {"type": "int", "default": 1},
            },
        },
        "fresh": {"type": "bool"},
        "periodic": {
            "type": "dict",
            "options": {
                "frames": {"type": "list", "elements": "str", "required": True},
                "period": {"type": "str", "required": True},
                "duration": {"type": "str"},
            },
        },
        "stop": {"type": "list", "elements": "str"},
        "request": {"type": "str"},
        "response": {"type": "str"},
        "timeout": {"type": "str", "default": "5s"},
    }
    RULES: t.ClassVar[dict[str, t.Any]] = {
        "required_one_of": [("send", "expect", "periodic", "stop", "request")],
        "mutually_exclusive": [(one, "request") for one in ("send", "expect", "periodic", "stop")],
        "required_by": {"response": ("request",)},
    }
    DURATIONS = ("timeout",)
