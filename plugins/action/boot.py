# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action of the module boot."""

from __future__ import annotations

import typing as t

from ansible_collections.jumpstarter.lab.plugins.plugin_utils._action import LabAction


class ActionModule(LabAction):
    """Powers the device on and follows it until it reaches a phase."""

    OP = "boot"
    SPEC: t.ClassVar[dict[str, dict[str, t.Any]]] = {
        "driver": {"type": "str", "default": "console"},
        "power_driver": {"type": "str", "default": "power"},
        "uboot_driver": {"type": "str", "default": "uboot"},
        "until": {"type": "str", "choices": ["bootloader", "kernel", "login", "shell"], "default": "shell"},
        "timeout": {"type": "str", "default": "5m"},
        "power_cycle": {"type": "bool", "default": True},
        "login": {
            "type": "dict",
            "options": {"user": {"type": "str", "default": "root"}, "password": {"type": "str", "no_log": True}},
        },
        "progress": {"type": "str", "choices": ["auto", "off", "verbose"], "default": "auto"},
    }
    DURATIONS = ("timeout",)

    def perform(self, options: dict[str, t.Any]) -> dict[str, t.Any]:
        options["power"] = options.pop("power_driver")
        options["uboot"] = options.pop("uboot_driver")
        if "login" in options:
            options["login"] = {name: value for name, value in options["login"].items() if value is not None}
        return self.ask(self.OP, options)
