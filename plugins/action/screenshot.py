# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action of the module screenshot."""

from __future__ import annotations

import typing as t

from ansible_collections.jumpstarter.lab.plugins.plugin_utils._action import LabAction


class ActionModule(LabAction):
    """Takes a picture of what the device shows, and compares it with what it should show."""

    OP = "screenshot"
    SPEC: t.ClassVar[dict[str, dict[str, t.Any]]] = {
        "driver": {"type": "str"},
        "path": {"type": "path"},
        "reference": {"type": "path"},
        "tolerance": {"type": "int", "default": 6},
        "hash": {
            "type": "str",
            "choices": ["perceptual", "average", "difference", "wavelet"],
            "default": "perceptual",
        },
        "hash_size": {"type": "int", "default": 8},
        "region": {
            "type": "dict",
            "options": {
                "left": {"type": "int", "default": 0},
                "top": {"type": "int", "default": 0},
                "width": {"type": "int", "required": True},
                "height": {"type": "int", "required": True},
            },
        },
        "timeout": {"type": "str", "default": "0"},
        "interval": {"type": "str", "default": "1s"},
        "require_online": {"type": "bool", "default": True},
        "vnc_password": {"type": "str", "no_log": True},
        "progress": {"type": "str", "choices": ["auto", "off", "verbose"], "default": "auto"},
    }
    RULES: t.ClassVar[dict[str, t.Any]] = {"required_by": {"region": ("reference",)}}
    DURATIONS: t.ClassVar[tuple[str, ...]] = ("timeout", "interval")

    def perform(self, options: dict[str, t.Any]) -> dict[str, t.Any]:
        if "path" in options:
            options["path"] = self._loader.path_dwim(options["path"])
        if "reference" in options:
            options["reference"] = self.find_file(options["reference"], "reference")
        return self.ask(self.OP, options)
