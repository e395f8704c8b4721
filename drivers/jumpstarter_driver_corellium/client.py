# SPDX-License-Identifier: Apache-2.0
"""Client of `Corellium`."""

from __future__ import annotations

from dataclasses import dataclass

from jumpstarter_driver_composite.client import CompositeClient

__all__ = ["CorelliumClient"]


@dataclass(kw_only=True)
class CorelliumClient(CompositeClient):
    """A virtual device of Corellium: ``power`` (`VirtualPowerClient`) and ``serial`` (`PySerialClient`)."""
