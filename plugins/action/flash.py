# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action of the module flash."""

from __future__ import annotations

import typing as t

from ansible_collections.jumpstarter.lab.plugins.plugin_utils._action import LabAction


class ActionModule(LabAction):
    """Writes an image to a target of the device's storage."""

    OP = "flash"
    SPEC: t.ClassVar[dict[str, dict[str, t.Any]]] = {
        "driver": {"type": "str", "default": "storage"},
        "src": {"type": "str", "required": True},
        "target": {"type": "str"},
        "verify": {"type": "bool", "default": True},
        "force": {"type": "bool", "default": False},
        "checksum": {"type": "str"},
        "compression": {"type": "str", "choices": ["auto", "none", "gzip", "xz", "bzip2", "zstd"], "default": "auto"},
        "wait": {"type": "bool", "default": True},
        "progress": {"type": "str", "choices": ["auto", "off", "verbose"], "default": "auto"},
    }

    def perform(self, options: dict[str, t.Any]) -> dict[str, t.Any]:
        if "://" not in options["src"]:
            options["src"] = self.find_file(options["src"], "image")
        return self.ask(self.OP, options)
