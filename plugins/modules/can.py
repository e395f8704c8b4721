# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: can
short_description: Send CAN frames, wait for frames, ask by ISO-TP
description:
  - Sends frames on a CAN bus next to the device and waits for others, on the exporter, so that the network between it
    and the control node does not matter. Frames are written as can-utils write them.
  - With O(request) it sends a message by ISO-TP (ISO 15765-2) and returns the answer.
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
    details: Nothing is sent, and nothing is waited for.
  diff_mode:
    support: none
  idempotent:
    support: none
    details: Frames are events, not a state. Only O(stop) changes nothing when there is nothing to stop.

options:
  driver:
    description: Path of the driver in the exporter, of a bus, or of an ISO-TP link for O(request).
    type: str
    default: can
  send:
    description:
      - Frames to send, in this order. V(123#DEADBEEF) has a standard id, V(1F334455#11) an extended one, V(123#R4) is a
        remote frame, V(123##1AABB) a CAN FD frame with bitrate switch.
    type: list
    elements: str
  expect:
    description: Frames to wait for after O(send). All of them have to come, in any order; each is a frame of its own.
    type: list
    elements: dict
    suboptions:
      id:
        description: Id in hex, three digits or eight (extended), with a mask if wanted as in V(700:7F0).
        type: str
        required: true
      data:
        description:
          - Data in hex, in quotes (YAML takes V(0341) for a number). A V(?) stands for any digit, a V(*) at the end for
            anything more. Without it any data will do.
        type: str
      count:
        description: How many such frames.
        type: int
        default: 1
  fresh:
    description:
      - Whether O(expect) only takes frames that come from now on. Otherwise those count as well that came earlier in
        the session and that nobody has seen. The default is V(true) with O(send), V(false) without.
    type: bool
  periodic:
    description: Frames that the exporter sends again and again, until O(stop), the end of the session or the duration.
    type: dict
    suboptions:
      frames:
        description: The frames, each of them a task of its own.
        type: list
        elements: str
        required: true
      period:
        description: Time from one to the next, in seconds or as in V(100ms).
        type: str
        required: true
      duration:
        description: How long, in seconds or as in V(1m).
        type: str
  stop:
    description: Periodic tasks to stop, as an earlier task returned them in RV(tasks).
    type: list
    elements: str
  request:
    description: Message in hex to send by ISO-TP; the next message that comes is the answer.
    type: str
  response:
    description: What the answer has to be, in hex with V(?) and V(*) as in O(expect[].data).
    type: str
  timeout:
    description: How long to wait for O(expect) or for the answer, in seconds or as in V(500ms).
    type: str
    default: 5s
"""

EXAMPLES = r"""
---
- name: Wake the device up and wait until it says that it is alive
  jumpstarter.lab.can:
    send: ["7DF#0201050000000000"]
    expect:
      - {id: "7E8", data: "0341*"}
    timeout: 2s

- name: Keep it awake
  jumpstarter.lab.can:
    periodic:
      frames: ["3E0#00"]
      period: 100ms
  register: awake

- name: Read the vehicle identification number
  jumpstarter.lab.can:
    driver: isotp
    request: "22 F1 90"
    response: "62 F1 90*"
  register: vin

- name: Let it sleep
  jumpstarter.lab.can:
    stop: "{{ awake.tasks }}"
"""

RETURN = r"""
---
frames:
  description: The frames that were expected, as they came.
  returned: success
  type: list
  elements: dict
  contains:
    frame:
      description: The frame in the notation of O(send).
      type: str
      sample: 7E8#034105
    id:
      description: Its id.
      type: int
    extended:
      description: Whether the id is an extended one.
      type: bool
    data:
      description: Its data in hex.
      type: str
    timestamp:
      description: When the exporter received it, in seconds since 1970.
      type: float
tasks:
  description: The periodic tasks that were started, for O(stop).
  returned: with O(periodic)
  type: list
  elements: str
request:
  description: The message that was sent, in hex.
  returned: with O(request)
  type: str
response:
  description: The answer, in hex.
  returned: with O(request)
  type: str
"""
