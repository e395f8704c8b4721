# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: uboot
short_description: Run commands at the U-Boot prompt, read and set its environment
description:
  - Brings the device to its U-Boot prompt when it is not there, and works at it. Variables are set only where they
    differ.
author:
  - The jumpstarter.lab contributors (@jumpstarter-lab)
version_added: 0.1.0
extends_documentation_fragment:
  - jumpstarter.lab._reach
  - jumpstarter.lab._attributes
  - jumpstarter.lab._attributes.action
attributes:
  check_mode:
    support: partial
    details: Reads what it can at a prompt that is there already; a device elsewhere is left alone.
  diff_mode:
    support: full
  idempotent:
    support: partial
    details: Full for O(env), O(get_env) and O(version); commands are always run.

options:
  driver:
    description: Path of the U-Boot driver in the exporter.
    type: str
    default: uboot
  commands:
    description: Commands to run one after another; the first that fails ends the task.
    type: list
    elements: str
  env:
    description: Environment variables to set, for this boot only (add C(saveenv) to O(commands) to keep them).
    type: dict
  get_env:
    description: Environment variables to read.
    type: list
    elements: str
  version:
    description: Ask for the version.
    type: bool
    default: false
  boot:
    description: Power-cycle the device into the prompt when it is not there. With V(false) the task fails instead.
    type: bool
    default: true
  timeout:
    description: How long each step may take, in seconds or as in V(30s), V(2m).
    type: str
    default: 1m
"""

EXAMPLES = r"""
---
- name: Which U-Boot is it?
  jumpstarter.lab.uboot:
    version: true
    get_env: [arch, board]
  register: uboot

- name: Boot from the network once
  jumpstarter.lab.uboot:
    env:
      bootargs: "root=/dev/nfs ip=dhcp"
    commands:
      - dhcp
"""

RETURN = r"""
---
version:
  description: Version of U-Boot.
  returned: with O(version)
  type: str
  sample: U-Boot 2023.01+dfsg-2
env:
  description: The variables of O(env) and O(get_env) with their values.
  returned: with O(env) or O(get_env)
  type: dict
  sample: {arch: arm}
results:
  description: What each command answered.
  returned: with O(commands)
  type: list
  elements: dict
  contains:
    cmd: {description: The command., type: str, returned: always, sample: dhcp}
    rc: {description: Its exit status., type: int, returned: always, sample: 0}
    lines: {description: Its output., type: list, elements: str, returned: always}
"""
