# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: exporter
short_description: Make, change or remove an exporter of a lab
description:
  - An exporter is a lab host's process that offers a device. The lab has to know it before it can connect.
author:
  - The jumpstarter.lab contributors (@jumpstarter-lab)
version_added: 0.1.0
extends_documentation_fragment:
  - jumpstarter.lab._controller
  - jumpstarter.lab._controller.administrator
  - jumpstarter.lab._controller.subject
  - jumpstarter.lab._attributes
  - jumpstarter.lab._attributes.action
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
    details: Not with O(rotate).

options:
  enabled:
    description: Whether it may be leased. A new one may, unless this says otherwise.
    type: bool
seealso:
  - module: jumpstarter.lab.exporter_info
"""

EXAMPLES = r"""
---
- name: A new board
  jumpstarter.lab.exporter:
    name: rpi4-7
    labels: {board: rpi4, rack: a}
    save: rpi4-7.yaml

- name: A board is being repaired
  jumpstarter.lab.exporter:
    name: rpi4-7
    enabled: false

- name: A board is gone for good
  jumpstarter.lab.exporter:
    name: rpi4-7
    state: absent
"""

RETURN = r"""
---
exporter:
  description: The exporter as it is, or in check mode would be, after the task.
  returned: when O(state=present)
  type: dict
  contains:
    name: {description: Its name., type: str, returned: always, sample: rpi4-7}
    labels: {description: Labels that administrators have set., type: dict, returned: always, sample: {board: rpi4}}
    username: {description: Who that is at an external issuer., type: str, returned: always}
    enabled: {description: Whether it may be leased., type: bool, returned: always}
saved:
  description: The file that was written.
  returned: when a token was issued
  type: str
  sample: rpi4-7.yaml
revoked:
  description: How many tokens were revoked.
  returned: when O(rotate=true)
  type: int
"""
