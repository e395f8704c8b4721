# SPDX-License-Identifier: Apache-2.0
"""Helpers of the neighbours: fake devices, snmpd."""

from __future__ import annotations

import sys
from pathlib import Path

for area in ("pdu", "power", "snmp", "cli"):
    sys.path.insert(0, str(Path(__file__).parents[1] / area))
