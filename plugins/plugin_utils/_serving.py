# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the actions http and tftp have in common. This plugin util is **PRIVATE** to the collection."""

from __future__ import annotations

import typing as t

from ansible_collections.jumpstarter.lab.plugins.plugin_utils._action import LabAction

_FILE: t.Final[dict[str, t.Any]] = {
    "src": {"type": "str", "required": True},
    "dest": {"type": "str"},
    "checksum": {"type": "str"},
}


def server_spec(driver: str) -> dict[str, dict[str, t.Any]]:
    """The options of a server's action; *driver* is the default path of the driver."""
    return {
        "driver": {"type": "str", "default": driver},
        "state": {"type": "str", "choices": ["started", "stopped", "status"], "default": "started"},
        "files": {"type": "list", "elements": "dict", "options": _FILE, "default": []},
        "absent": {"type": "list", "elements": "str", "default": []},
        "progress": {"type": "str", "choices": ["auto", "off", "verbose"], "default": "auto"},
    }


class ServerAction(LabAction):
    """Puts files on a server of the exporter, starts and stops it."""

    def perform(self, options: dict[str, t.Any]) -> dict[str, t.Any]:
        files = []
        for entry in options.get("files", []):
            file = {name: value for name, value in entry.items() if value is not None}
            if "://" not in file["src"]:
                file["src"] = self.find_file(file["src"], "file")
            files.append(file)
        return self.ask(self.OP, {**options, "files": files})


__all__ = ("ServerAction", "server_spec")
