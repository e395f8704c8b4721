# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: exporter_info
short_description: List the exporters of a lab
description:
  - Returns the exporters that the controller knows, with their labels, drivers, status and who holds them. Takes no
    lease.
author:
  - The jumpstarter.lab contributors (@jumpstarter-lab)
version_added: 0.1.0
extends_documentation_fragment:
  - jumpstarter.lab._controller
  - jumpstarter.lab._attributes
  - jumpstarter.lab._attributes.action
attributes:
  check_mode:
    support: full
  diff_mode:
    support: N/A
  idempotent:
    support: full

options:
  name:
    description: Only the exporter of this name. The task fails when there is none.
    type: str
  selector:
    description: Only exporters with these labels, as in V(board=rpi4,rack in (a,b),!broken).
    type: str
    default: ""
  hidden_labels:
    description: Return labels that the lab hides as well.
    type: bool
    default: false
seealso:
  - plugin: jumpstarter.lab.exporters
    plugin_type: inventory
"""

EXAMPLES = r"""
---
- name: Which boards of rack a are there
  jumpstarter.lab.exporter_info:
    selector: rack=a
  register: rack

- name: Show who holds them
  ansible.builtin.debug:
    msg: "{{ item.name }}: {{ item.client or 'free' }}"
  loop: "{{ rack.exporters }}"
  loop_control:
    label: "{{ item.name }}"
"""

RETURN = r"""
---
exporters:
  description: The exporters, by name.
  returned: success
  type: list
  elements: dict
  contains:
    name: {description: Name of the exporter., type: str, returned: always, sample: virt-1}
    namespace: {description: Its namespace., type: str, returned: always, sample: default}
    labels: {description: Its labels., type: dict, returned: always, sample: {board: rpi4}}
    deprecated_labels: {description: What the lab says of labels that will go., type: dict, returned: always}
    online: {description: Whether it is connected., type: bool, returned: always}
    enabled: {description: Whether it may be leased., type: bool, returned: always}
    available: {description: Whether a lease would get it now., type: bool, returned: always}
    status: {description: What it is doing., type: str, returned: always, sample: AVAILABLE}
    status_message: {description: What it says of that., type: str, returned: always}
    drivers:
      description: Client class by driver path.
      returned: always (empty with other controllers than ours)
      type: dict
      sample: {power: jumpstarter_driver_power.client.PowerClient}
    lease: {description: Name of the lease that holds it; none when it is free., type: str, returned: always}
    client: {description: Who holds it; none when it is free., type: str, returned: always}
    lease_ends: {description: Until when; none when it is free., type: str, returned: always}
"""
