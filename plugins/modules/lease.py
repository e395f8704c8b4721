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
  - For a host with C(jumpstarter_selector) or C(jumpstarter_exporter) the lease is asked of the lab's controller. The
    task waits in its queue and shows its place there. While it is held, the lease is kept alive by heartbeat; it
    survives restarts of the controller, of routers and of the exporter, and ends within a minute when the machine that
    runs Ansible vanishes.
author:
  - The jumpstarter.lab contributors (@jumpstarter-lab)
version_added: 0.1.0
extends_documentation_fragment:
  - jumpstarter.lab._reach
  - jumpstarter.lab._progress
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
      - A detached lease of a controller is held by the controller alone, for an hour without O(duration), and found
        by its name from every machine.
    type: str
    choices: [run, play, detached]
    default: run
  name:
    description: Name of the lease. A detached lease needs one, and a later run finds it by that name. A lease of this
      client that the controller knows by that name is used, and is not given back at the end of the run.
    type: str
  hold_on_failure:
    description: Keep the device this long for inspection when a task fails on its host, in seconds or as in V(30m).
      The end of the run says how to get at it.
    type: str
  timeout:
    description: Longest time to wait for a lease of the controller, in seconds or as in V(30m). Without it as the
      client configuration says (two hours).
    type: str
  selector:
    description: Labels the exporter must have, as in V(board=rpi4,rack in (a,b)), instead of those of the host
      variable C(jumpstarter_selector). Only for leases of a controller.
    type: str
  exporter:
    description: Name of the exporter to lease, instead of what the host variables ask for. Only for leases of a
      controller.
    type: str
  begin_time:
    description: When the lease shall begin, as in V(2026-11-21T22:00:00+01:00). The exporter is reserved, and the task
      waits until then. Only for leases of a controller.
    type: str
  tags:
    description: Labels of the lease itself, by which C(jmp get leases) and others find it. Only for leases of a
      controller.
    type: dict
  context:
    description: What the lease is for, as texts by name (a job's address, a ticket). Shown to people, without further
      meaning. Only for leases of a controller.
    type: dict
  allow_disabled:
    description: Take an exporter that an administrator has disabled, too. Only for leases of a controller.
    type: bool
    default: false
  wait_for_match:
    description: Wait for an exporter that does not exist yet, instead of failing when none has these labels. Only for
      leases of a controller of jumpstarter.lab.
    type: bool
    default: false
notes:
  - The connection variables for ssh (C(ansible_host), C(ansible_port), C(ansible_ssh_common_args) with a proxy
    through the exporter and a known_hosts file of the lease) become host variables. A later task or play with
    C(ansible_connection=ansible.builtin.ssh) reaches the device by them.
  - In check mode no lease is taken or asked for. For a host behind a controller the result says whether an exporter
    would be available now, and the task fails when there is none that could ever be.
  - Options that are only for leases of a controller have no effect on other hosts, except O(selector) and O(exporter),
    which such hosts refuse.
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

- name: Any free board of that kind, waiting at most half an hour
  jumpstarter.lab.lease:
    selector: board=rpi4,rack in (a,b)
    timeout: 30m
    tags:
      pipeline: "4711"
  register: held

- name: Which one is it
  ansible.builtin.debug:
    msg: "{{ held.lease.exporter }}, after {{ held.lease.waited }} s in the queue"

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
    lifetime: {description: When it ends by itself., type: str, returned: when held, sample: run}
    reattached: {description: Whether an earlier run had taken it., type: bool, returned: when held}
    controller: {description: Address of the controller., type: str, returned: from a controller, sample: "lab:8082"}
    namespace: {description: Namespace of the lease there., type: str, returned: from a controller, sample: default}
    client: {description: Client that holds it., type: str, returned: from a controller, sample: nightly}
    selector: {description: Labels that were asked for., type: str, returned: from a controller, sample: board=rpi4}
    labels: {description: Labels of the exporter., type: dict, returned: from a controller, sample: {board: rpi4}}
    tags: {description: Tags of the lease., type: dict, returned: from a controller}
    context: {description: What the lease is for., type: dict, returned: from a controller}
    waited: {description: Seconds until it was granted., type: float, returned: from a controller, sample: 0.04}
    spot: {description: Whether it may be taken away for others., type: bool, returned: from a controller}
    shell: {description: Command that opens a shell on the same lease., type: str, returned: from a controller}
    simulated: {description: No lease was taken., type: bool, returned: in check mode when absent}
    available:
      description: Whether a lease would be had at once.
      type: bool
      returned: in check mode, from a controller
    matching: {description: Exporters that could be leased., type: list, returned: "in check mode, from a controller"}
    free: {description: Those of them that are free., type: list, returned: "in check mode, from a controller"}
extended:
  description: Whether an existing lease was given more time.
  returned: when state is present and the lease is held
  type: bool
connection:
  description: The connection variables that were published for the host.
  returned: when the exporter has an ssh driver
  type: dict
  sample: {ansible_host: virt-arm64.jumpstarter, ansible_port: 22}
"""
