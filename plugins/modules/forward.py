# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: forward
short_description: Make the far end of a network driver reachable on the control node
description:
  - Listens on a local TCP port or unix socket and joins every connection with the exporter's network driver. It
    stays until a task takes it away or the lease ends.
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
    support: none
  idempotent:
    support: full

options:
  driver:
    description: Path of the network driver in the exporter.
    type: str
    required: true
  method:
    description: Stream method of the driver.
    type: str
    default: connect
  kind:
    description: What to listen on.
    type: str
    choices: [tcp, unix]
    default: tcp
  bind:
    description: Address to listen on with O(kind=tcp).
    type: str
    default: 127.0.0.1
  port:
    description: Port to listen on with O(kind=tcp); V(0) takes a free one.
    type: int
    default: 0
  path:
    description: Socket to listen on with O(kind=unix); without it one in the private folder of the run.
    type: path
  state:
    description: Whether it listens.
    type: str
    choices: [present, absent]
    default: present
"""

EXAMPLES = r"""
---
- name: Reach the board's web server
  jumpstarter.lab.forward:
    driver: http
  register: http

- name: Ask it
  ansible.builtin.uri:
    url: "http://{{ http.address }}/"
  delegate_to: localhost
"""

RETURN = r"""
---
address:
  description: Where it listens, C(host:port) or the path of the socket.
  returned: success
  type: str
  sample: 127.0.0.1:40321
host:
  description: Address it listens on.
  returned: with O(kind=tcp)
  type: str
  sample: 127.0.0.1
port:
  description: Port it listens on.
  returned: with O(kind=tcp)
  type: int
  sample: 40321
path:
  description: Path of the socket.
  returned: with O(kind=unix)
  type: str
"""
