# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action of the module forward."""

from __future__ import annotations

import typing as t

from ansible_collections.jumpstarter.lab.plugins.plugin_utils._action import LabAction


class ActionModule(LabAction):
    """Makes a network driver's far end reachable on the control node."""

    OP = "forward"
    SPEC: t.ClassVar[dict[str, dict[str, t.Any]]] = {
        "driver": {"type": "str", "required": True},
        "method": {"type": "str", "default": "connect"},
        "kind": {"type": "str", "choices": ["tcp", "unix"], "default": "tcp"},
        "bind": {"type": "str", "default": "127.0.0.1"},
        "port": {"type": "int", "default": 0},
        "path": {"type": "path"},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    }
