# SPDX-License-Identifier: Apache-2.0
"""The process beside the device: sessions, driver dispatch, servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jumpstarter.exporter.session import Session

__all__ = ["Session"]


def __getattr__(name: str) -> Any:
    if name == "Session":
        from jumpstarter.exporter.session import Session

        return Session
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
