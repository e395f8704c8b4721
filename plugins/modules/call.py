# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: call
short_description: Call any method of any driver
description:
  - Calls an exported method of a driver of the host's exporter by name. For what has no action of its own.
author:
  - The jumpstarter.lab contributors (@jumpstarter-lab)
version_added: 0.1.0
extends_documentation_fragment:
  - jumpstarter.lab._reach
  - jumpstarter.lab._attributes
  - jumpstarter.lab._attributes.action
attributes:
  check_mode:
    support: partial
    details: Methods the driver calls read-only are called; others are not, and count as a change.
  diff_mode:
    support: none
  idempotent:
    support: N/A

options:
  driver:
    description: Path of the driver in the exporter, as in V(power) or V(qemu.console).
    type: str
    required: true
  method:
    description: Name of the exported method.
    type: str
    required: true
  args:
    description: Positional arguments. Bytes are written as a dictionary C(base64) with the encoded data.
    type: list
    elements: raw
    default: []
  kwargs:
    description: Keyword arguments.
    type: dict
    default: {}
  max_items:
    description: How many items of a streaming method are collected at most.
    type: int
"""

EXAMPLES = r"""
---
- name: Read the power meter
  jumpstarter.lab.call:
    driver: power
    method: read
    max_items: 1
  register: reading

- name: Set a relay
  jumpstarter.lab.call:
    driver: relays.fan
    method: set
    args: [true]
"""

RETURN = r"""
---
value:
  description: What the method returned; a list for a streaming method.
  returned: success
  type: raw
  sample: [{voltage: 5.0, current: 0.2}]
"""
