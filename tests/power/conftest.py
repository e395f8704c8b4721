# SPDX-License-Identifier: Apache-2.0
"""Fakes of power devices."""

from __future__ import annotations

import sys
from pathlib import Path

for area in ("power", "cli", "usb", "snmp", "tasmota"):
    sys.path.insert(0, str(Path(__file__).parents[1] / area))
