# SPDX-License-Identifier: Apache-2.0
"""Pictures, and a real ustreamer that shows one of them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
