# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action of the module exporter_info."""

from __future__ import annotations

import typing as t

from ansible_collections.jumpstarter.lab.plugins.plugin_utils._controller import (
    CONTROLLER_RULES,
    CONTROLLER_SPEC,
    ControllerAction,
)


class ActionModule(ControllerAction):
    """Lists exporters of the lab."""

    OP = "exporter_info"
    SPEC: t.ClassVar[dict[str, dict[str, t.Any]]] = {
        **CONTROLLER_SPEC,
        "name": {"type": "str"},
        "selector": {"type": "str", "default": ""},
        "hidden_labels": {"type": "bool", "default": False},
    }
    RULES: t.ClassVar[dict[str, t.Any]] = CONTROLLER_RULES
