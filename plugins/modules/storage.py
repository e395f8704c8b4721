# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: storage
short_description: Connect a device's storage to one side, or read it back into a file
description:
  - Switches a storage multiplexer between the lab host and the device, or dumps a target of a flasher driver into
    a file of the control node.
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
    support: full
  diff_mode:
    support: full
  idempotent:
    support: partial
    details: A dump is always made.

options:
  driver:
    description: Path of the storage driver in the exporter.
    type: str
    default: storage
  state:
    description: Side the storage is connected to; V(status) only reads it. Give this or O(dump).
    type: str
    choices: [host, dut, "off", status]
  dump:
    description: Read the storage back. Give this or O(state).
    type: dict
    suboptions:
      path:
        description: File of the control node to write; a relative path is beside the playbook.
        type: path
        required: true
      target:
        description: Name of the target, when the driver has several.
        type: str
seealso:
  - module: jumpstarter.lab.flash
"""

EXAMPLES = r"""
---
- name: Give the card to the device
  jumpstarter.lab.storage:
    state: dut

- name: Keep what is on the disk
  jumpstarter.lab.storage:
    dump:
      path: /srv/dumps/board.img
"""

RETURN = r"""
---
state:
  description: Side the storage is connected to.
  returned: when O(state) is given
  type: str
  sample: dut
previous:
  description: Side it was connected to before.
  returned: when O(state) is given
  type: str
  sample: host
path:
  description: File the storage was read into.
  returned: when O(dump) is given
  type: str
  sample: /srv/dumps/board.img
size:
  description: Size of that file in bytes.
  returned: when O(dump) is given
  type: int
  sample: 100663296
sha256:
  description: Digest of that file.
  returned: when O(dump) is given
  type: str
  sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
"""
