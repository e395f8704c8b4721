# SPDX-License-Identifier: Apache-2.0
"""A base for drivers of servers that devices reach, and that must not outlive the session."""

from __future__ import annotations

import threading
from abc import abstractmethod
from dataclasses import dataclass, field

from jumpstarter.common.ipaddr import get_ip_address
from jumpstarter.driver.base import Driver
from jumpstarter.driver.decorators import export

__all__ = ["SessionServer"]


@dataclass(kw_only=True)
class SessionServer(Driver):
    """A server that runs from `start` to `stop`, or to the end of the session.

    A subclass has ``host`` and ``bind`` in its configuration, and says how to start and stop. Both are called under
    ``_lock``, which one thread may take several times.
    """

    _lock: threading.RLock = field(init=False, repr=False, default_factory=threading.RLock)
    _address: str | None = field(init=False, repr=False, default=None)
    _over: bool = field(init=False, repr=False, default=False)

    @property
    @abstractmethod
    def host(self) -> str | None:
        """The address that devices reach it by; this host's own if there is none."""

    @property
    @abstractmethod
    def bind(self) -> str | None:
        """The address to listen on; that of `get_host` if there is none."""

    @property
    @abstractmethod
    def _runs(self) -> bool:
        """Whether it serves."""

    @abstractmethod
    def _start(self) -> None:
        """Serve; it does not run. Raises OSError when the address cannot be had."""

    @abstractmethod
    def _stop(self) -> None:
        """Serve no more; nothing happens when it does not."""

    @export
    def start(self) -> None:
        """Start to serve; nothing happens when it does already. OSError when its address or a program cannot be had."""
        with self._lock:
            if self._runs:
                return
            if self._over:  # the call was late: nobody would stop it any more
                raise ConnectionAbortedError("the session is over")
            self._start()

    @export
    def stop(self) -> None:
        """Stop to serve, and cut off who is using it; nothing happens when it does not serve."""
        with self._lock:
            self._stop()

    @export(readonly=True)
    def get_host(self) -> str:
        """The address that devices reach it by."""
        if self.host:
            return self.host
        if self._address is None:
            self._address = get_ip_address(self.logger)
        return self._address

    def reset(self) -> None:
        """Start of a session: nothing of the one before runs on."""
        self.stop()
        super().reset()
        self._over = False

    def close(self) -> None:
        """End of the session: stop, then let the children end."""
        with self._lock:
            self._over = True
        self.stop()
        super().close()

    def _bind_address(self) -> str:
        return self.bind or self.get_host()
