# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: client
short_description: Make, change or remove a client of a lab
description:
  - A client is somebody who leases exporters - a person, a pipeline, a play.
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
  administrator:
    description: Whether it may change the lab. A new one may not, unless this says so.
    type: bool
  allow:
    description: Driver classes that the saved configuration allows to be imported, as globs.
    type: list
    elements: str
  unsafe:
    description: The saved configuration allows to import whatever exporters name.
    type: bool
    default: false
seealso:
  - module: jumpstarter.lab.access_policy
"""

EXAMPLES = r"""
---
- name: A client for the nightly pipeline
  jumpstarter.lab.client:
    name: nightly
    labels: {team: platform}
    allow: [jumpstarter_driver_*]
    save: nightly.yaml

- name: Its token has been seen by others
  jumpstarter.lab.client:
    name: nightly
    rotate: true
    save: nightly.yaml

- name: Somebody has left
  jumpstarter.lab.client:
    name: eva
    state: absent
    force: true
"""

RETURN = r"""
---
lab_client:
  description: The client as it is, or in check mode would be, after the task.
  returned: when O(state=present)
  type: dict
  contains:
    name: {description: Its name., type: str, returned: always, sample: nightly}
    labels: {description: Its labels., type: dict, returned: always, sample: {team: platform}}
    username: {description: Who that is at an external issuer., type: str, returned: always}
    administrator: {description: Whether it may change the lab., type: bool, returned: always}
saved:
  description: The file that was written.
  returned: when a token was issued
  type: str
  sample: nightly.yaml
revoked:
  description: How many tokens were revoked.
  returned: when O(rotate=true)
  type: int
"""
