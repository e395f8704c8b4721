# SPDX-License-Identifier: Apache-2.0
"""One outlet behind an SNMP agent: who we are, how it is switched, and how it tells its state."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from jumpstarter_driver_power.common import PowerState
from jumpstarter_driver_power.switched import PowerError
from jumpstarter_driver_snmp.common import AuthProtocol, PrivProtocol, SNMPError
from jumpstarter_driver_snmp.engine import shared_engines

__all__ = ["Agent", "Credentials", "Outlet", "StateColumn"]


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Who asks. version: "1" or "2c" with a community, "3" with a user and keys."""

    version: str
    community: str = field(default="", repr=False)
    user: str = ""
    auth_protocol: AuthProtocol = AuthProtocol.NONE
    auth_key: str | None = field(default=None, repr=False)
    priv_protocol: PrivProtocol = PrivProtocol.NONE
    priv_key: str | None = field(default=None, repr=False)
    context: str = ""


class Agent:
    """An SNMP agent. timeout: seconds per try. retries: tries after the first."""

    def __init__(self, host: str, port: int, timeout: float, retries: int) -> None:
        self.host, self.port = host, port
        self._timing = (timeout, retries)
        self._lock = threading.Lock()
        self._acquired = False

    def get(self, credentials: Credentials, oid: str) -> int | None:
        """The INTEGER at `oid`, None when the agent has no such object.

        Raises `SNMPError`, `TimeoutError`, `ConnectionError`.
        """
        value = self._request(credentials, oid, None)
        if value is None:
            return None
        try:
            return int(value)
        except (TypeError, ValueError):
            raise SNMPError(f"SNMP agent {self.host}:{self.port}: {oid} is no number: {value!s:.40}") from None

    def set(self, credentials: Credentials, oid: str, value: int) -> None:
        """Set the INTEGER at `oid`. Raises as `get`."""
        self._request(credentials, oid, value)

    def _request(self, credentials: Credentials, oid: str, value: int | None) -> Any:
        engines = shared_engines()
        with self._lock:
            if not self._acquired:
                engines.acquire()
                self._acquired = True
        return engines.run(engines.request(credentials, (self.host, self.port), self._timing, (oid, value)))

    def close(self) -> None:
        """Let the engine go; the next request takes it again."""
        with self._lock:
            if self._acquired:
                self._acquired = False
                shared_engines().release()


@dataclass(frozen=True)
class StateColumn:
    """Where the state is read, and the numbers that mean on and off; all others mean that it is on its way."""

    oid: str
    on: tuple[int, ...]
    off: tuple[int, ...]


@dataclass(frozen=True)
class Outlet:
    """An outlet: (OID, number) that switch it on and off, and the columns of its state, the best one first."""

    on: tuple[str, int]
    off: tuple[str, int]
    states: tuple[StateColumn, ...]

    def switch(self, agent: Agent, credentials: Credentials, on: bool) -> None:
        """Tell the agent. Raises as `Agent.get`."""
        agent.set(credentials, *(self.on if on else self.off))

    def state(self, agent: Agent, credentials: Credentials) -> PowerState:
        """Ask the agent, at the first of the columns that it has.

        Raises `PowerError` when it has none of them, else as `Agent.get`.
        """
        for column in self.states:
            value = agent.get(credentials, column.oid)
            if value is None:
                continue
            return "on" if value in column.on else "off" if value in column.off else "unknown"
        raise PowerError(
            f"SNMP agent {agent.host}:{agent.port}: there is nothing to read at "
            f"{' or '.join(column.oid for column in self.states)}; the device has no such outlet, or tells the state "
            "elsewhere (status_oid), or not at all (verify: false)"
        )
