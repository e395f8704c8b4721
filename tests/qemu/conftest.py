# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the QEMU tests; the helpers are in conftest_qemu, which tests may import by that name."""

from __future__ import annotations

from conftest_qemu import serving

__all__ = ["serving"]
