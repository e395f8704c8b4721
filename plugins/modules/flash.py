# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: flash
short_description: Write an image to a device's storage
description:
  - Writes a disk image to a target of a flasher driver, checked from end to end. A compressed image is unpacked on
    the way; a truncated or damaged one fails the task and is never reported as written.
  - The exporter keeps the digest of what it wrote, so that writing the same image again changes nothing.
  - Size and identity of the target are checked before the first write.
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
    support: full

options:
  driver:
    description: Path of the flasher driver in the exporter.
    type: str
    default: storage
  src:
    description:
      - The image, a file of the control node or an address with V(http://) or V(https://). A relative path is
        looked for like the O(ansible.builtin.copy#module:src) of M(ansible.builtin.copy), in C(files) beside the
        playbook or role first.
    type: str
    required: true
  target:
    description: Name of the target, when the driver has several.
    type: str
  verify:
    description: Read back what was written and compare. On a target that holds the image already, compare as well
      and repair what differs.
    type: bool
    default: true
  force:
    description: Write all of it even when the target holds the image already.
    type: bool
    default: false
  checksum:
    description: Digest of the image file, as V(sha256:...). Another one is refused before anything is written.
    type: str
  compression:
    description: How the image is compressed; V(auto) looks at its first bytes.
    type: str
    choices: [auto, none, gzip, xz, bzip2, zstd]
    default: auto
  wait:
    description: Wait until it is written. With V(false) the task returns an operation for
      M(jumpstarter.lab.operation) at once.
    type: bool
    default: true
seealso:
  - module: jumpstarter.lab.operation
  - module: jumpstarter.lab.storage
"""

EXAMPLES = r"""
---
- name: Write the image and compare
  jumpstarter.lab.flash:
    src: images/board.img.xz

- name: Write a pinned image to one of several targets
  jumpstarter.lab.flash:
    src: https://images.example.org/board.img.zst
    target: emmc
    checksum: sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

- name: Start writing and do something else meanwhile
  jumpstarter.lab.flash:
    src: images/board.img
    wait: false
  register: flashing
"""

RETURN = r"""
---
target:
  description: Name of the target.
  returned: success
  type: str
  sample: disk
size:
  description: Size of the unpacked image in bytes.
  returned: success
  type: int
  sample: 100663296
written_bytes:
  description: Bytes written; 0 when the target held the image already.
  returned: success
  type: int
  sample: 31457280
skipped_bytes:
  description: Bytes that did not need to be written, zeros of a target that reads as zeros for example.
  returned: success
  type: int
  sample: 69206016
moved_bytes:
  description: Bytes moved to the exporter.
  returned: success
  type: int
  sample: 31457280
sha256:
  description: Digest of the unpacked image.
  returned: success
  type: str
  sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
verified:
  description: Whether the target was read back and is the same.
  returned: success
  type: bool
  sample: true
repaired_blocks:
  description: Blocks that differed from the image on a target that should have held it.
  returned: success
  type: int
  sample: 0
seconds:
  description: How long it took.
  returned: success
  type: float
  sample: 1.42
reason:
  description: Why it was written or not, in a few words.
  returned: success
  type: str
  sample: the target holds this image
operation:
  description: The operation, for M(jumpstarter.lab.operation).
  returned: when O(wait=false)
  type: dict
"""
