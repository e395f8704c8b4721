# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action of the module gpio."""

from __future__ import annotations

import typing as t

from ansible_collections.jumpstarter.lab.plugins.plugin_utils._action import LabAction


class ActionModule(LabAction):
    """Sets or reads a GPIO line, or waits for it."""

    OP = "gpio"
    SPEC: t.ClassVar[dict[str, dict[str, t.Any]]] = {
        "driver": {"type": "str", "default": "gpio"},
        "state": {"type": "str", "choices": ["on", "off", "read"]},
        "wait_for": {"type": "str", "choices": ["active", "inactive", "rising", "falling"]},
        "timeout": {"type": "str", "default": "30s"},
    }
    RULES: t.ClassVar[dict[str, t.Any]] = {"mutually_exclusive": [("state", "wait_for")]}
    DURATIONS = ("timeout",)
