# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Attributes of the actions; this doc fragment is **PRIVATE** to the collection."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and say what would change without touching the device.
  diff_mode:
    description: Returns what changed, or would change, when in diff mode.
  idempotent:
    description: Run twice in a row with the same options, the second run changes nothing.
"""

    # Everything runs in the session agent, on the control node: these are the same for all actions.
    ACTION = r"""
options: {}
attributes:
  action:
    description: Is an action plugin and runs on the control node.
    support: full
  action_group:
    description: Member of the action group C(jumpstarter.lab.lab), for C(module_defaults).
    support: full
    membership:
      - jumpstarter.lab.lab
  async:
    description: Can be used with the C(async) keyword.
    support: none
  become:
    description: Can be used with C(become); exporter and controller decide what may be done.
    support: none
  connection:
    description: Uses the connection of the host; these actions reach exporter and controller whatever it is.
    support: none
  delegation:
    description: Can be used with C(delegate_to); the variables of the host named there count.
    support: full
"""
