# SPDX-License-Identifier: Apache-2.0
"""Tell a driver's synchronous method that its caller has gone away.

A thread cannot be stopped from outside. Coroutines get ``CancelledError``; a plain function that works for long asks
`call_cancelled` now and then.
"""

from __future__ import annotations

from contextvars import ContextVar
from threading import Event

__all__ = ["CANCELLED", "call_cancelled"]

#: Set by the dispatcher around each synchronous call.
CANCELLED: ContextVar[Event | None] = ContextVar("jumpstarter_call_cancelled", default=None)


def call_cancelled() -> bool:
    """True when the client of the running call disconnected or gave up. False outside of driver calls."""
    event = CANCELLED.get()
    return event is not None and event.is_set()
