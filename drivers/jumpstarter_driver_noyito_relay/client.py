# SPDX-License-Identifier: Apache-2.0
"""Client of the NOYITO relay boards."""

from __future__ import annotations

from dataclasses import dataclass

from jumpstarter_driver_power.client import PowerClient

__all__ = ["NoyitoPowerClient"]


@dataclass(kw_only=True)
class NoyitoPowerClient(PowerClient):
    """A power client; `status` may also answer "partial" when a driver of all channels finds them differing."""
