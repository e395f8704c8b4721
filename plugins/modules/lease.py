# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: lease
short_description: Take, extend or give back the lease of a device
description:
  - Holds the device of the host for this run, so that nobody else uses it meanwhile, and publishes how it is
    reached over ssh.
  - The lease is held by the session agent of the run, not by the task. It is given back when C(ansible-playbook)
    ends for any reason, Ctrl-C and C(kill -9) included; no C(always) block is needed.
  - Ending a lease powers off what this run had powered on.
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
    support: full
  idempotent:
    support: full
    details: A second run extends the lease and reports no change.

options:
  state:
    description: Whether this run holds the device.
    type: str
    choices: [present, absent]
    default: present
  duration:
    description: Longest time the device is held, in seconds or as in V(30m), V(1h30m). Without it, as long as the
      run takes.
    type: str
  lifetime:
    description:
      - When the lease ends by itself. V(run) at the end of C(ansible-playbook), V(play) at the end of the play,
        V(detached) only when O(duration) is over or a task gives it back by O(name).
    type: str
    choices: [run, play, detached]
    default: run
  name:
    description: Name of the lease. A detached lease needs one, and a later run finds it by that name.
    type: str
  hold_on_failure:
    description: Keep the device this long for inspection when a task fails on its host, in seconds or as in V(30m).
    type: str
notes:
  - The connection variables for ssh (C(ansible_host), C(ansible_port), C(ansible_ssh_common_args) with a proxy
    through the exporter and a known_hosts file of the lease) become host variables. A later task or play with
    C(ansible_connection=ansible.builtin.ssh) reaches the device by them.
seealso:
  - module: jumpstarter.lab.lease_info
"""

EXAMPLES = r"""
---
- name: Hold the board for this run
  jumpstarter.lab.lease:
    duration: 30m

- name: Keep a failing board for inspection
  jumpstarter.lab.lease:
    duration: 1h
    hold_on_failure: 30m

- name: Hold a board over several runs
  jumpstarter.lab.lease:
    name: nightly-42
    lifetime: detached
    duration: 2h

- name: Give the board back before the run ends
  jumpstarter.lab.lease:
    state: absent
"""

RETURN = r"""
---
lease:
  description: The lease as it is after the task.
  returned: success
  type: dict
  contains:
    name: {description: Name of the lease., type: str, returned: when held, sample: run-4711}
    state: {description: Whether it is held., type: str, returned: always, sample: held}
    exporter: {description: Name of the exporter., type: str, returned: when held, sample: virt-arm64}
    reach: {description: How the exporter is reached., type: dict, returned: when held}
    holder: {description: Who holds it., type: str, returned: when held, sample: eva@bench pid 4711}
    acquired_at: {description: Since when., type: str, returned: when held, sample: "2026-11-21T10:00:00Z"}
    expires_at: {description: Until when; none when it lasts as long as the run., type: str, returned: when held}
    drivers: {description: Drivers of the exporter by path., type: dict, returned: when held}
    jumpstarter_host:
      description: Unix socket that speaks the exporter's protocol; C(JUMPSTARTER_HOST) for C(j) and pytest.
      type: str
      returned: when held
    recording_dir: {description: Where this lease is recorded., type: str, returned: when held}
connection:
  description: The connection variables that were published for the host.
  returned: when the exporter has an ssh driver
  type: dict
  sample: {ansible_host: virt-arm64.jumpstarter, ansible_port: 22}
"""
