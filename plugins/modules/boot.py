# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: boot
short_description: Boot a device and follow it to a phase
description:
  - Powers the device on and follows its console through bootloader, kernel, login and shell, logging in when asked
    to. Fails when the phase is not reached in time, or at once when the kernel panics, with the last lines of the
    console in the result.
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
    support: partial
    details: With O(power_cycle=false) a device that is in the phase already stays as it is.

options:
  driver:
    description: Path of the console driver in the exporter.
    type: str
    default: console
  power_driver:
    description: Path of the power driver in the exporter.
    type: str
    default: power
  uboot_driver:
    description: Path of the U-Boot driver in the exporter.
    type: str
    default: uboot
  until:
    description: Phase to reach. V(bootloader) stops the boot at the prompt of the bootloader.
    type: str
    choices: [bootloader, kernel, login, shell]
    default: shell
  timeout:
    description: How long it may take in all, in seconds or as in V(90s), V(5m).
    type: str
    default: 5m
  power_cycle:
    description: Start from power off. With V(false) a device that runs already is followed from where it is.
    type: bool
    default: true
  login:
    description: How to log in when the device asks.
    type: dict
    suboptions:
      user:
        description: Name of the user.
        type: str
        default: root
      password:
        description: Password of the user.
        type: str
seealso:
  - plugin: jumpstarter.lab.console
    plugin_type: connection
  - module: jumpstarter.lab.uboot
"""

EXAMPLES = r"""
---
- name: Boot to a shell
  jumpstarter.lab.boot:
    until: shell
    timeout: 2m

- name: Stop at the bootloader
  jumpstarter.lab.boot:
    until: bootloader

- name: Boot and log in
  jumpstarter.lab.boot:
    until: shell
    login:
      user: root
      password: "{{ vault_board_password }}"
"""

RETURN = r"""
---
phases:
  description: Phases in the order they were reached.
  returned: success, and on failure those that were reached
  type: list
  elements: dict
  contains:
    phase: {description: Name of the phase., type: str, returned: always, sample: kernel}
    at: {description: Time of day it was reached., type: float, returned: always}
    seconds: {description: Seconds after power on., type: float, returned: always, sample: 3.2}
bootloader_version:
  description: Version the bootloader announced.
  returned: when it was seen
  type: str
  sample: U-Boot 2023.01+dfsg-2
kernel_version:
  description: Version the kernel announced.
  returned: when it was seen
  type: str
  sample: 6.1.0-40-cloud-arm64
console_tail:
  description: Last lines of the console.
  returned: always
  type: str
"""
