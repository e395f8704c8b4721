# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: operation
short_description: Wait for, look at or cancel work that runs in the background
description:
  - Follows work that a task started with C(wait=false), such as M(jumpstarter.lab.flash). Actions run on the
    control node cannot use C(async); this takes its place.
author:
  - The jumpstarter.lab contributors (@jumpstarter-lab)
version_added: 0.1.0
extends_documentation_fragment:
  - jumpstarter.lab._progress
  - jumpstarter.lab._reach
  - jumpstarter.lab._attributes
  - jumpstarter.lab._attributes.action
attributes:
  check_mode:
    support: partial
    details: The operation is looked at, never waited for or canceled.
  diff_mode:
    support: none
  idempotent:
    support: full

options:
  id:
    description: The operation, RV(jumpstarter.lab.flash#module:operation) and its C(id).
    type: str
    required: true
  state:
    description: V(waited) waits until it is done and fails when it failed, V(status) looks, V(canceled) stops it.
    type: str
    choices: [waited, status, canceled]
    default: waited
  timeout:
    description: How long to wait, in seconds or as in V(30m). The operation goes on when this is over.
    type: str
    default: 30m
seealso:
  - module: jumpstarter.lab.flash
"""

EXAMPLES = r"""
---
- name: Start writing
  jumpstarter.lab.flash:
    src: images/board.img
    wait: false
  register: flashing

- name: Wait until it is written
  jumpstarter.lab.operation:
    id: "{{ flashing.operation.id }}"
    timeout: 10m
"""

RETURN = r"""
---
operation:
  description: The operation as it is now.
  returned: success
  type: dict
  contains:
    id: {description: Its name., type: str, returned: always}
    op: {description: What it does., type: str, returned: always, sample: flash}
    state:
      description: V(running), V(succeeded), V(failed) or V(canceled).
      type: str
      returned: always
      sample: succeeded
    seconds: {description: How long it has run., type: float, returned: always, sample: 4.1}
    result: {description: What the task would have returned., type: dict, returned: when it succeeded}
    error: {description: Why it failed., type: dict, returned: when it failed}
"""
