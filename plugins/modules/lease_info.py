# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: lease_info
short_description: Say whether a device is leased by this run, and how
description:
  - Returns the lease this run holds on the host's device. Never takes one.
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
    support: N/A
  idempotent:
    support: full

seealso:
  - module: jumpstarter.lab.lease
"""

EXAMPLES = r"""
---
- name: Look at the lease
  jumpstarter.lab.lease_info:
  register: info

- name: Show the drivers of the board
  ansible.builtin.debug:
    var: info.lease.drivers

- name: Until when a lease of the controller lasts, and on which exporter
  ansible.builtin.debug:
    msg: "{{ info.lease.exporter }} until {{ info.lease.expires_at or 'the end of the run' }}"
"""

RETURN = r"""
---
leased:
  description: Whether this run holds the device.
  returned: success
  type: bool
lease:
  description: The lease, as M(jumpstarter.lab.lease) returns it. C(state) is V(absent) when there is none.
  returned: success
  type: dict
  sample: {state: absent}
"""
