# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: console
short_description: Wait for text on a device's console, type on it, or read its log
description:
  - Works with the serial console below any shell. To run commands on a booted device, use the connection
    P(jumpstarter.lab.console#connection) instead.
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
    details: Reading is done; waiting and typing are left out.
  diff_mode:
    support: none
  idempotent:
    support: N/A

options:
  driver:
    description: Path of the console driver in the exporter.
    type: str
    default: console
  action:
    description:
      - V(expect) waits until O(pattern) appears, V(send) types O(send), V(log) returns what the console said,
        V(phase) says what the device is doing, V(break) sends a serial break.
    type: str
    choices: [expect, send, log, phase, break]
    default: expect
  pattern:
    description: Regular expression to wait for. Needed for O(action=expect); with O(action=send) it is awaited
      after typing.
    type: str
  send:
    description: Text to type. Needed for O(action=send).
    type: str
  enter:
    description: Press enter after the text.
    type: bool
    default: true
  secret:
    description: The text is a secret; it is kept out of the recording.
    type: bool
    default: false
  timeout:
    description: How long to wait for O(pattern), in seconds or as in V(30s), V(2m).
    type: str
    default: 30s
  since_seq:
    description: Place in the console log to start from, as RV(seq) of an earlier task gave it. Without it, from
      now on.
    type: int
  lines:
    description: How many lines O(action=log) returns at most.
    type: int
    default: 100
"""

EXAMPLES = r"""
---
- name: Wait for the installer
  jumpstarter.lab.console:
    pattern: "Install complete in ([0-9]+) s"
    timeout: 10m
  register: installed

- name: Interrupt it
  jumpstarter.lab.console:
    action: send
    send: "\x03"
    enter: false

- name: Keep the last lines
  jumpstarter.lab.console:
    action: log
    lines: 50
  register: tail
"""

RETURN = r"""
---
matched:
  description: Whether the pattern appeared.
  returned: with O(action=expect)
  type: bool
  sample: true
match:
  description: Text that matched.
  returned: with O(action=expect)
  type: str
  sample: Install complete in 12 s
groups:
  description: Groups of the pattern.
  returned: with O(action=expect)
  type: list
  elements: str
  sample: ["12"]
before:
  description: What the console said before the match.
  returned: with O(action=expect)
  type: str
phase:
  description: What the device is doing.
  returned: success
  type: str
  sample: shell
log:
  description: What the console said.
  returned: with O(action=log)
  type: str
lines:
  description: The last O(lines) lines of it.
  returned: with O(action=log)
  type: list
  elements: str
phases:
  description: Phases of this boot in the order they were reached.
  returned: with O(action=phase)
  type: list
  elements: dict
seq:
  description: Place in the console log after the task, in bytes since the exporter started.
  returned: success
  type: int
  sample: 18230
"""
