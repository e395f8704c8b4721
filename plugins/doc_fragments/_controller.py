# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Which controller is asked, and as whom; this doc fragment is **PRIVATE** to the collection."""

    DOCUMENTATION = r"""
options:
  client:
    description:
      - Client configuration by its alias, as in C(jmp config client list).
      - Without it and without O(client_config), the host variables C(jumpstarter_client) or
        C(jumpstarter_client_config) say it, else it is the one that C(jmp) would use.
    type: str
  client_config:
    description: Client configuration file. A relative path is looked for beside the inventory, then the playbook.
    type: path
requirements:
  - Python package C(jumpstarter-lab) in the Python that runs Ansible
"""

    ADMINISTRATOR = r"""
options: {}
notes:
  - The client has to be an administrator of the lab, and the controller one of jumpstarter.lab.
  - Tokens go from the controller into the file that O(save) names, with mode 0600 on the control node. They are never
    part of a result.
"""

    # What clients and exporters of a lab have in common.
    SUBJECT = r"""
options:
  name:
    description: Its name in the lab.
    type: str
    required: true
  state:
    description: Whether it is there.
    type: str
    choices: [present, absent]
    default: present
  labels:
    description: All of its labels; others are taken away. Without this option they stay as they are.
    type: dict
  username:
    description: Who that is at an external issuer of identities, as the lab's configuration maps it. Empty for nobody.
    type: str
  save:
    description:
      - Configuration file that is written, with a new token in it, when it is not there, when its token does not work,
        and when what it is for is made anew.
      - Of a file that is there only identity, address and token change; drivers and the rest stay.
    type: path
  rotate:
    description: Revoke every token that was issued before. With O(save), a new one is written there.
    type: bool
    default: false
  force:
    description: Remove it although there are leases of it; they end.
    type: bool
    default: false
"""
