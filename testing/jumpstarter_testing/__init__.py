# SPDX-License-Identifier: Apache-2.0
"""Write tests against a device: `JumpstarterTest` for pytest, `eventually` for what takes its time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jumpstarter_testing.eventually import eventually

if TYPE_CHECKING:
    from jumpstarter_testing.pytest import JumpstarterTest

__all__ = ["JumpstarterTest", "eventually"]


def __getattr__(name: str) -> Any:
    # pytest is only needed by who uses the base class.
    if name == "JumpstarterTest":
        from jumpstarter_testing.pytest import JumpstarterTest

        return JumpstarterTest
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
