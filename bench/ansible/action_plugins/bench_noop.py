# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task costs when its action does nothing: the floor of the Ansible rows."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):  # type: ignore[misc]
    """Do nothing."""

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        return {"changed": False}
