# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action of the module call."""

from __future__ import annotations

import typing as t

from ansible_collections.jumpstarter.lab.plugins.plugin_utils._action import LabAction


class ActionModule(LabAction):
    """Calls any method of any driver of the device's exporter."""

    OP = "call"
    SPEC: t.ClassVar[dict[str, dict[str, t.Any]]] = {
        "driver": {"type": "str", "required": True},
        "method": {"type": "str", "required": True},
        "args": {"type": "list", "elements": "raw", "default": []},
        "kwargs": {"type": "dict", "default": {}},
        "max_items": {"type": "int"},
    }
