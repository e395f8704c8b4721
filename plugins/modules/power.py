# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: power
short_description: Switch a device on or off, or power-cycle it
description:
  - Brings the device's power into a state. Where the driver can tell the state, nothing is switched when it is
    there already.
author:
  - The jumpstarter.lab contributors (@jumpstarter-lab)
version_added: 0.1.0
extends_documentation_fragment:
  - jumpstarter.lab._reach
  - jumpstarter.lab._attributes
  - jumpstarter.lab._attributes.action
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: partial
    details: Full for V(on) and V(off) where the driver knows the state of the power; V(cycled) always switches.

options:
  driver:
    description: Path of the power driver in the exporter.
    type: str
    default: power
  state:
    description: State to bring the power into; V(status) only reads it.
    type: str
    choices: ["on", "off", cycled, status]
    default: "on"
  wait:
    description: How long the power stays off with O(state=cycled), in seconds or as in V(500ms), V(5s).
    type: str
    default: 2s
"""

EXAMPLES = r"""
---
- name: Switch the board on
  jumpstarter.lab.power:
    state: "on"

- name: Power-cycle it and leave the capacitors time
  jumpstarter.lab.power:
    state: cycled
    wait: 5s

- name: Is it on?
  jumpstarter.lab.power:
    state: status
  register: power
"""

RETURN = r"""
---
state:
  description: State of the power after the task, V(unknown) when the driver cannot tell.
  returned: success
  type: str
  sample: "on"
previous:
  description: State of the power before the task.
  returned: success
  type: str
  sample: "off"
"""
