# SPDX-License-Identifier: Apache-2.0
"""One socket of an EnerGenie EG-PMS2-LAN or EG-PMS2-WLAN power strip.

The device has a web page and no API. What is known of it (the vendor's manual, and what its pages hold): POST
/login.html with pw=PASSWORD logs in, POST / with cteN=1 or 0 switches socket N, every page of a session holds
"var sockstates = [1,0,0,1]", GET /login.html logs out. There is one session at a time, and every answer is HTTP 200: a
wrong password brings the login form again, a second session a page that says so.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar
from weakref import WeakValueDictionary

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver.secret import check_secret, read_secret
from jumpstarter_driver_http_power.transport import HttpSession, check_timeout, check_url
from jumpstarter_driver_power.common import PowerState
from jumpstarter_driver_power.switched import PowerError, SwitchedPower

__all__ = ["EnerGenie", "Strip"]

SOCKETS = 4
_STATES = re.compile(r"sockstates\s*=\s*\[([01](?:\s*,\s*[01])*)\]")
_LOGIN_FORM = re.compile(r"""name\s*=\s*["']?pw\b""")
_BUSY_PAUSE = 0.25  # seconds between two tries to get the session that somebody else has

_locks: WeakValueDictionary[str, _Lock] = WeakValueDictionary()
_locks_lock = threading.Lock()


class _Lock:
    """A lock that can be referred to weakly."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


def _lock_of(url: str) -> _Lock:
    """The lock of a strip: drivers of its sockets must not ask for its one session at the same time."""
    with _locks_lock:
        lock = _locks.get(url)
        if lock is None:
            lock = _locks[url] = _Lock()
        return lock


class Strip:
    """A power strip. url: "http://HOST:PORT". timeout: seconds for one request, and for getting the session."""

    def __init__(self, url: str, timeout: float) -> None:
        self.url = url
        self._timeout = timeout
        self._lock = _lock_of(url)

    def states(self, password: str, change: Mapping[str, str] | None = None) -> list[bool]:
        """The states of the sockets, after `change` ({"cte1": "1"}) when given.

        Raises `PermissionError` for a wrong password, `TimeoutError` when the session cannot be had, and
        `ConnectionError`, `PowerError` as `HttpSession.request`.
        """
        with self._lock.lock, HttpSession(timeout=self._timeout) as http:
            with self._logged_in(http, password) as page:
                if change is not None:
                    answer = http.request("POST", f"{self.url}/", data=change)
                    page = answer.text
                found = _STATES.search(page)
                if found is None:
                    page = http.get(f"{self.url}/energenie.html").text
                    found = _STATES.search(page)
            if found is None:
                raise PowerError(f"{self.url}: the page does not tell the states; is it an EG-PMS2-LAN?")
            return [digit.strip() == "1" for digit in found.group(1).split(",")]

    @contextmanager
    def _logged_in(self, http: HttpSession, password: str) -> Iterator[str]:
        """Hold the session; the page that the login brought."""
        deadline = time.monotonic() + self._timeout
        while True:
            page = http.request("POST", f"{self.url}/login.html", data={"pw": password}).text
            if _STATES.search(page):
                break
            if _LOGIN_FORM.search(page):
                raise PermissionError(f"{self.url}: the device refuses the password")
            if time.monotonic() + _BUSY_PAUSE > deadline:
                raise TimeoutError(
                    f"{self.url}: somebody else was logged in for {self._timeout:g} s; the device takes one session; "
                    "log out in the browser, or switch the device off and on"
                )
            time.sleep(_BUSY_PAUSE)
        try:
            yield page
        finally:
            http.get(f"{self.url}/login.html")  # or nobody gets in before the device's own timeout


@dataclass(kw_only=True)
class EnerGenie(SwitchedPower):
    """Switches one socket and reads its state from the device's page.

    host: name or address, port may follow a colon. password or password_file: the device's; "1" from the factory.
    slot: 1 to 4. timeout: seconds for one request, and for getting the device's only session.
    """

    needs: ClassVar[tuple[str, ...]] = ("requests",)

    host: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: str | None = None
    slot: int = 1
    timeout: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.slot <= SOCKETS:
            raise ConfigurationError(f"slot is {self.slot}, must be 1 to {SOCKETS}")
        if not self.host:
            raise ConfigurationError("host is required: name or address of the power strip")
        check_secret("password", self.password, self.password_file)
        check_timeout(self.timeout)
        url = f"http://{self.host}"
        check_url("host", url)
        self._strip = Strip(url, self.timeout)

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_power.client.PowerClient"

    @property
    def target(self) -> str:
        """The socket, for messages."""
        return f"socket {self.slot} of the power strip {self.host}"

    def _password(self) -> str:
        return read_secret("password", self.password, self.password_file) or "1"

    def switch(self, on: bool) -> None:
        """Log in, switch, log out."""
        self._strip.states(self._password(), {f"cte{self.slot}": "1" if on else "0"})

    def state(self) -> PowerState:
        """Log in, look, log out."""
        states = self._strip.states(self._password())
        if len(states) < self.slot:
            raise PowerError(f"{self.target}: the device has only {len(states)} sockets")
        return "on" if states[self.slot - 1] else "off"
