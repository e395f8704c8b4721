# SPDX-License-Identifier: Apache-2.0
"""Makes images/ importable: the builders are scripts beside their package, no part of any distribution."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "images"))
