# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gpio
short_description: Set or read a GPIO line, or wait for it
description:
  - Brings a line that is wired to the device (a reset, a boot selector, a button) into a state, reads one (a LED, a
    ready signal), or waits for it. V(on) is active, whichever level that is.
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
    details: With O(wait_for) nothing is waited for.
  diff_mode:
    support: full
  idempotent:
    support: full

options:
  driver:
    description: Path of the driver in the exporter.
    type: str
    default: gpio
  state:
    description: State to bring the line into; V(read) only reads it, and is what happens without O(wait_for).
    type: str
    choices: ["on", "off", read]
  wait_for:
    description:
      - Wait until the line is V(active) or V(inactive), or for its next edge. Edges need a chip with interrupts.
    type: str
    choices: [active, inactive, rising, falling]
  timeout:
    description: How long to wait, in seconds or as in V(500ms), V(5m).
    type: str
    default: 30s
"""

EXAMPLES = r"""
---
- name: Hold the recovery button
  jumpstarter.lab.gpio:
    driver: recovery
    state: "on"

- name: Wait until the board says that it is ready
  jumpstarter.lab.gpio:
    driver: ready
    wait_for: active
    timeout: 1m

- name: Is the LED on?
  jumpstarter.lab.gpio:
    driver: led
  register: led
"""

RETURN = r"""
---
state:
  description: State of the line after the task, V(on) or V(off).
  returned: success
  type: str
  sample: "on"
previous:
  description: State of the line before the task, V(unknown) when the driver cannot read it.
  returned: with O(state)
  type: str
  sample: "off"
"""
