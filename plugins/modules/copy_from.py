# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: copy_from
short_description: Copy a file from a running device
description:
  - Copies one file over the device's console and compares the sha256 of both ends. Needs a shell on the device,
    but neither network nor Python.
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
    support: none
  idempotent:
    support: full
    details: A file that is there already with the same content is not copied again.

options:
  driver:
    description: Path of the console driver in the exporter.
    type: str
    default: console
  src:
    description: Absolute path of the file on the device.
    type: str
    required: true
  dest:
    description: File of the control node to write; a relative path is beside the playbook.
    type: path
    required: true
  allow_slow:
    description:
      - Copy even when it would take many minutes over the serial line; without it such a copy is refused at once.
    type: bool
    default: false
  timeout:
    description: How long it may take, in seconds or as in V(90s), V(10m).
    type: str
    default: 10m
seealso:
  - module: jumpstarter.lab.copy_to
"""

EXAMPLES = r"""
---
- name: Fetch the report
  jumpstarter.lab.copy_from:
    src: /tmp/report.txt
    dest: /srv/reports/board.txt
"""

RETURN = r"""
---
size:
  description: Size of the file in bytes.
  returned: success
  type: int
  sample: 4096
sha256:
  description: Digest of the file, the same on both ends.
  returned: success
  type: str
  sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
dest:
  description: Where it was copied to.
  returned: success
  type: str
  sample: /tmp/report.txt
"""
