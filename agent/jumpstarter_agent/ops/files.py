# SPDX-License-Identifier: Apache-2.0
"""copy_to and copy_from: one file to or from the running device."""

from __future__ import annotations

from typing import Any

from ..context import Context
from . import console

__all__ = ["copy_from", "copy_to"]


async def copy_to(ctx: Context) -> dict[str, Any]:
    """Put a file on the device; unchanged when it is there with this content and mode."""
    return await console.put(ctx)


async def copy_from(ctx: Context) -> dict[str, Any]:
    """Get a file from the device; unchanged when the local file has its content."""
    return await console.fetch(ctx)
