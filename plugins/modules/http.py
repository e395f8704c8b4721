# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: http
short_description: Serve files to a device by HTTP
description:
  - Puts files on the HTTP server beside a device, and starts or stops it. A file that is there already, by size and
    digest, is not sent again.
  - Devices download whole files or ranges of them; folders are not listed.
  - The server stops, and the files that were put there go, when the lease or session ends, unless the exporter's
    configuration keeps them.
author:
  - The jumpstarter.lab contributors (@jumpstarter-lab)
version_added: 0.1.0
extends_documentation_fragment:
  - jumpstarter.lab._serving
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
    support: full

options:
  driver:
    description: Path of the HTTP server driver in the exporter.
    type: str
    default: http
seealso:
  - module: jumpstarter.lab.tftp
  - module: jumpstarter.lab.uboot
"""

EXAMPLES = r"""
---
- name: Serve the root file system
  jumpstarter.lab.http:
    files:
      - src: images/rootfs.squashfs
        dest: boot/rootfs.squashfs
  register: web

- name: Have the device fetch it
  ansible.builtin.command: "wget -O /tmp/rootfs {{ web.files[0].url }}"
  changed_when: true

- name: Stop it and remove what it had
  jumpstarter.lab.http:
    state: stopped
    absent: [boot]
"""

RETURN = r"""
---
running:
  description: Whether it serves.
  returned: success
  type: bool
  sample: true
host:
  description: Address that devices reach it by.
  returned: success
  type: str
  sample: 192.0.2.10
port:
  description: Its port.
  returned: success
  type: int
  sample: 8080
url:
  description: Address of its root, without a slash at the end; none while it does not serve.
  returned: success
  type: str
  sample: http://192.0.2.10:8080
files:
  description: One entry for each of O(files), in their order.
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: Its path on the server.
      type: str
      sample: boot/Image
    url:
      description: Its address; none while the server does not run.
      type: str
      sample: http://192.0.2.10:8080/boot/Image
    size:
      description: Its size in bytes.
      type: int
      sample: 33554432
    sha256:
      description: Its digest.
      type: str
      sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    changed:
      description: Whether it was sent.
      type: bool
      sample: true
    reason:
      description: Why, or why not, in a few words.
      type: str
      sample: the storage has this file
removed:
  description: What of O(absent) was there.
  returned: success
  type: list
  elements: str
  sample: []
"""
