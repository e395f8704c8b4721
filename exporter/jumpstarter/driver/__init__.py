# SPDX-License-Identifier: Apache-2.0
"""Write a driver: subclass `Driver`, mark methods with `export` and `exportstream`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jumpstarter.driver.base import Driver
from jumpstarter.driver.cancellation import call_cancelled
from jumpstarter.driver.decorators import export, exportstream

if TYPE_CHECKING:
    from jumpstarter.driver.flasher import FlasherInterface

__all__ = ["Driver", "FlasherInterface", "call_cancelled", "export", "exportstream"]


def __getattr__(name: str) -> Any:
    if name == "FlasherInterface":
        from jumpstarter.driver.flasher import FlasherInterface

        return FlasherInterface
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
