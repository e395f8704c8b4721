# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Options of the actions that serve files to devices; this doc fragment is **PRIVATE** to the collection."""

    DOCUMENTATION = r"""
options:
  state:
    description: Whether it serves; V(status) only tells. Files are put before it starts.
    type: str
    choices: [started, stopped, status]
    default: started
  files:
    description: Files it shall have.
    type: list
    elements: dict
    default: []
    suboptions:
      src:
        description:
          - A file of the control node, or an address with V(http://) or V(https://), which the control node downloads.
            A relative path is looked for in C(files) beside the playbook or role first.
        type: str
        required: true
      dest:
        description: Its path on the server, folders included; the last part of O(files[].src) otherwise.
        type: str
      checksum:
        description: Digest of the file, as V(sha256:...). Another one is refused before anything is sent.
        type: str
  absent:
    description: Files and folders it shall not have. A folder goes with all that is in it.
    type: list
    elements: str
    default: []
"""
