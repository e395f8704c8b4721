# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: screenshot
short_description: Take a picture of what a device shows, and check it
description:
  - Takes a picture of the device's screen through a video driver (a camera or a grabber), a VNC driver, or the screen
    of a virtual machine, and keeps it in a file of the control node and in the report of the run.
  - With O(reference) it is compared with a picture of what the screen should show. With O(timeout) as well, pictures
    are taken until one is similar. The task fails when none is; the last one is in the report.
  - Needs the extras V(video) or V(vnc) on the control node, and V(imagehash) for comparisons.
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
    details: The picture is taken, and compared, but not written to O(path).
  diff_mode:
    support: none
  idempotent:
    support: partial
    details: The task is changed when the file at O(path) is another picture than before.

options:
  driver:
    description:
      - Path of the driver in the exporter. A video driver, a VNC driver, a virtual machine, or the network driver that
        leads to a VNC server.
      - Not needed when the exporter has one screen.
    type: str
  path:
    description:
      - File of the control node for the picture; a relative path is beside the playbook. Its ending, C(.jpg) or
        C(.png), says the format.
      - Without it the picture is in the report only.
    type: path
  reference:
    description: Picture of what the screen should show, a file of the control node, looked for as C(files) are.
    type: path
  tolerance:
    description:
      - How many bits of the hash may differ. 0 is the same for the hash, half of the bits is no likeness at all.
    type: int
    default: 6
  hash:
    description:
      - What is compared. V(perceptual) looks at shapes, V(difference) at edges, V(average) at bright and dark areas,
        V(wavelet) at areas as well, with more sense of detail. None of them sees colours.
    type: str
    choices: [perceptual, average, difference, wavelet]
    default: perceptual
  hash_size:
    description: Side of the hash, which has this number squared of bits. More of them see smaller things.
    type: int
    default: 8
  region:
    description: Compare this part of both pictures only, in pixels, to leave out a clock for example.
    type: dict
    suboptions:
      left:
        description: Left edge.
        type: int
        default: 0
      top:
        description: Upper edge.
        type: int
        default: 0
      width:
        description: Width.
        type: int
        required: true
      height:
        description: Height.
        type: int
        required: true
  timeout:
    description:
      - How long to take pictures until one is similar to O(reference), in seconds or as in V(90s), V(5m). A source
        that has no picture yet, such as a virtual machine that is off, is asked again as well.
    type: str
    default: "0"
  interval:
    description: Pause between two pictures, in seconds or as in V(500ms), V(2s).
    type: str
    default: 1s
  require_online:
    description:
      - Fail when the source says that it has no signal. With V(false), what it shows instead is taken.
    type: bool
    default: true
  vnc_password:
    description: Password of the VNC server, if it wants one.
    type: str
seealso:
  - module: jumpstarter.lab.boot
"""

EXAMPLES = r"""
---
- name: Wait until the login screen is there
  jumpstarter.lab.screenshot:
    reference: login-screen.png
    timeout: 2m

- name: Keep a picture of the desktop
  jumpstarter.lab.screenshot:
    driver: video
    path: /srv/pictures/desktop.jpg

- name: Check the logo, whatever is below it
  jumpstarter.lab.screenshot:
    driver: qemu
    reference: boot-logo.png
    region: {left: 200, top: 100, width: 240, height: 120}
    tolerance: 4
"""

RETURN = r"""
---
path:
  description: File of the picture.
  returned: when O(path) is given
  type: str
  sample: /srv/pictures/desktop.jpg
recording:
  description: The picture in the report of the run.
  returned: when the run is recorded
  type: str
  sample: /srv/reports/20260101-120000/board-1/screenshot-001.jpg
screenshot:
  description: Name of that file.
  returned: when the run is recorded
  type: str
  sample: screenshot-001.jpg
driver:
  description: Driver that gave the picture.
  returned: success
  type: str
  sample: video
width:
  description: Width of the picture in pixels.
  returned: success
  type: int
  sample: 1920
height:
  description: Height of the picture in pixels.
  returned: success
  type: int
  sample: 1080
format:
  description: V(jpeg) or V(png).
  returned: success
  type: str
  sample: jpeg
size:
  description: Size of the file in bytes.
  returned: success
  type: int
  sample: 183201
sha256:
  description: Digest of the file.
  returned: success
  type: str
  sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
online:
  description: Whether the source says that it has a signal.
  returned: success
  type: bool
  sample: true
attempts:
  description: How many pictures were taken.
  returned: success
  type: int
  sample: 3
similar:
  description: Whether the picture is like the reference.
  returned: when O(reference) is given
  type: bool
  sample: true
distance:
  description: How many bits of the hash differ.
  returned: when O(reference) is given
  type: int
  sample: 2
bits:
  description: How many bits the hash has.
  returned: when O(reference) is given
  type: int
  sample: 64
"""
