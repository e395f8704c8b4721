# SPDX-License-Identifier: Apache-2.0
"""Make the helper modules of this folder importable, also by exporters under test."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
