# SPDX-License-Identifier: Apache-2.0
"""What a task is told while it waits for a lease, and what it is told when it waited in vain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from .connection import Observer
from .durations import format_duration
from .errors import AgentError

__all__ = ["Waiting"]

REPEAT_SECONDS = 30.0
"""A queue in which nothing moves is mentioned so often."""

_MORE = {
    "unsatisfiable": "`jmp get exporters` lists what there is; wait_for_match waits for an exporter that comes later",
    "invalid": "",
}


class Waiting:
    """The wait for one lease. target: what was asked for. seconds: how long it took, until now while it waits."""

    def __init__(self, target: str, observer: Observer) -> None:
        self._target = target
        self._observer = observer
        self._began = time.monotonic()
        self._took: float | None = None
        self._state: Any = None
        self._shown: tuple[int, int, str] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.then: Callable[[Any], object] | None = None
        """Takes the states that come when the lease is held."""

    @property
    def seconds(self) -> float:
        """From the request to the exporter."""
        return self._took if self._took is not None else time.monotonic() - self._began

    def state(self, state: Any) -> None:
        """Take a `LeaseState`; shows what changed."""
        self._state = state
        if state.lease.state == "ready" or state.ended:
            self.over()
            if self.then is not None:
                self.then(state)
            return
        if self._took is None:
            seen = (state.position, state.waiting, state.message)
            if seen != self._shown:
                self._shown = seen
                self._show()

    def over(self) -> None:
        """The wait has ended, one way or another."""
        if self._took is None:
            self._took = time.monotonic() - self._began
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def timed_out(self, limit: float) -> AgentError:
        """The error of a wait that took longer than it may."""
        self.over()
        where = self._where()
        return AgentError(
            "timeout",
            f"no lease of {self._target} within {format_duration(limit)}"
            + (f": {where}" if where else "")
            + "; wait longer (timeout) or ask for something else",
            self._data(),
        )

    def refused(self, error: AgentError) -> AgentError:
        """`error` of a lease that was not granted, with the code that its last state says."""
        self.over()
        state = self._state.lease.state if self._state is not None else ""
        if state not in _MORE:
            return error
        more = f" ({_MORE[state]})" if _MORE[state] else ""
        return AgentError(state, f"no lease of {self._target}: {self._state.message}{more}", self._data())

    def _show(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        seconds = time.monotonic() - self._began
        since = f" (for {format_duration(seconds)})" if seconds >= 1 else ""
        text = f"waiting for a lease{since}: {self._where() or self._target}"
        self._observer.note(text, **self._data())
        self._timer = asyncio.get_running_loop().call_later(REPEAT_SECONDS, self._show)

    def _where(self) -> str:
        state = self._state
        if state is None:
            return ""
        place = f"{state.position} of {state.waiting}" if state.position else ""
        return ", ".join(part for part in (place, state.message) if part)

    def _data(self) -> dict[str, Any]:
        state = self._state
        data: dict[str, Any] = {"waited": round(self.seconds, 3)}
        if state is not None:
            data.update(lease=state.lease.name, position=state.position, waiting=state.waiting)
        return data
