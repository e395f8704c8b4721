# SPDX-License-Identifier: Apache-2.0
"""Paths to the emulated USB hardware."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "usb"))
