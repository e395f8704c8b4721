# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: access_policy
short_description: Make, change or remove an access policy of a lab
description:
  - An access policy says which clients may lease which exporters, for how long and with which priority. As long as
    a lab has none, every client may lease every exporter; as soon as there is one, only what policies allow is leased.
  - Policies count for leases that are there already too, when they are changed, extended or handed over.
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
    support: full
  idempotent:
    support: full

options:
  name:
    description: Name of the policy.
    type: str
    required: true
  state:
    description: Whether it is there.
    type: str
    choices: [present, absent]
    default: present
  exporters:
    description: Selector of the exporters that the policy is about. Without it, all.
    type: str
    default: ""
  rules:
    description: Who may lease them. Required with O(state=present). The rule with the highest priority that fits a
      client counts.
    type: list
    elements: dict
    suboptions:
      clients:
        description: Selector of the clients that the rule is for. Without it, all.
        type: str
        default: ""
      priority:
        description: Leases with a higher one are served first.
        type: int
        default: 0
      maximum_duration:
        description: Longest lease, in seconds or as in V(2h). Without it there is no limit.
        type: str
      spot:
        description: Leases by this rule may be taken away, after a grace period, for others that wait.
        type: bool
        default: false
      description:
        description: What the rule is for.
        type: str
        default: ""
notes:
  - The client has to be an administrator of the lab, and the controller one of jumpstarter.lab.
seealso:
  - module: jumpstarter.lab.client
"""

EXAMPLES = r"""
---
- name: The platform team comes first, others get what is left
  jumpstarter.lab.access_policy:
    name: rpi4
    exporters: board=rpi4
    rules:
      - clients: team=platform
        priority: 10
        maximum_duration: 8h
      - description: Everybody, until somebody of the platform team waits
        maximum_duration: 1h
        spot: true

- name: No rules any more
  jumpstarter.lab.access_policy:
    name: rpi4
    state: absent
"""

RETURN = r"""
---
policy:
  description: The policy as it is, or in check mode would be, after the task.
  returned: when O(state=present)
  type: dict
  contains:
    name: {description: Its name., type: str, returned: always, sample: rpi4}
    exporters: {description: Selector of its exporters., type: str, returned: always, sample: board=rpi4}
    rules: {description: Its rules; durations in seconds., type: list, elements: dict, returned: always}
"""
