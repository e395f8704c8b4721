# SPDX-License-Identifier: Apache-2.0
"""Wait for a condition that becomes true in its own time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["eventually"]

T = TypeVar("T")


def eventually(check: Callable[[], T], timeout: float = 5.0, interval: float = 0.05) -> T:
    """Call `check` until it raises nothing, and return its result.

    timeout: seconds after which the last exception is let through. interval: seconds between two calls. `check` is
    called at least once. KeyboardInterrupt and the like end the waiting at once.

        eventually(lambda: assert_ready(client), timeout=30)
    """
    end = time.monotonic() + timeout
    while True:
        try:
            return check()
        except Exception:  # which exceptions mean "not yet" is known to the caller alone
            left = end - time.monotonic()
            if left <= 0:
                raise
            time.sleep(min(interval, left))
