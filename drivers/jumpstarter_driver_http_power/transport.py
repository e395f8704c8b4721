# SPDX-License-Identifier: Apache-2.0
"""HTTP as power devices speak it: one short-lived session per operation, bounded in time and size.

The texts of errors name the scheme, host and path, never the query, the userinfo, headers or what was sent: those may
hold passwords. requests is imported when something is switched.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_driver_power.switched import PowerError

__all__ = ["Answer", "HttpLogin", "HttpSession", "check_timeout", "check_url"]

_LARGEST = 1 << 20  # bytes of an answer; a state page is some kilobytes
_REDIRECTS = 3
_GRACE = 0.25  # seconds; a device that says nothing at all is told from one that never comes to an end


@dataclass(frozen=True)
class HttpLogin:
    """How a device knows us. kind: "none", "basic", "digest" (RFC 7616, SHA-256 included) or "bearer"."""

    kind: str = "none"
    user: str = ""
    secret: str = field(default="", repr=False)


@dataclass(frozen=True)
class Answer:
    """What a device answered. where: the request, for messages."""

    status: int
    text: str = field(repr=False)
    where: str

    def json(self) -> Any:
        """The document in the answer. Raises `PowerError` when it is none."""
        try:
            return json.loads(self.text)
        except ValueError as error:
            raise PowerError(f"{self.where}: the answer is no JSON: {error}") from None


class HttpSession:
    """Requests to one device, with one connection; use it as context manager.

    login: how the device knows us. timeout: seconds for one request, its whole answer included. ca: file of the
    certificates that the device's must be signed by (None: those of the system). verify: False takes any certificate.
    """

    def __init__(
        self, login: HttpLogin | None = None, *, timeout: float = 10, ca: str | None = None, verify: bool = True
    ) -> None:
        import requests

        from jumpstarter_driver_http_power.bounded import BoundedAdapter

        # Their debug lines and warnings of bad headers show the whole URL: some devices take the password there.
        for name in ("urllib3.connectionpool", "urllib3.connection"):
            logging.getLogger(name).setLevel(logging.ERROR)
        login = login or HttpLogin()
        self._timeout = timeout
        self._session = requests.Session()
        self._bound = BoundedAdapter()
        self._session.mount("http://", self._bound)
        self._session.mount("https://", self._bound)
        self._session.trust_env = False  # no proxy and no .netrc between a lab and its sockets
        self._session.max_redirects = _REDIRECTS
        self._session.verify = (ca or True) if verify else False
        if login.kind == "basic":
            self._session.auth = (login.user, login.secret)
        elif login.kind == "digest":
            self._session.auth = requests.auth.HTTPDigestAuth(login.user, login.secret)
        elif login.kind == "bearer":
            self._session.headers["Authorization"] = f"Bearer {login.secret}"

    def __enter__(self) -> HttpSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def get(self, url: str, **more: Any) -> Answer:
        """`request` with GET."""
        return self.request("GET", url, **more)

    def request(
        self,
        method: str,
        url: str,
        *,
        data: str | Mapping[str, str] | None = None,
        document: Any = None,
        headers: Mapping[str, str] | None = None,
        statuses: Iterable[int] | None = None,
    ) -> Answer:
        """One request. data: a body, or the fields of a form. document: a body as JSON. statuses: those that are fine.

        Without `statuses` all below 400 are. Raises `TimeoutError`, `ConnectionError`, `PermissionError` (401, 403),
        `PowerError` for other answers.
        """
        where = f"{method} {_public(url)}"
        answer = self._guarded(where, lambda: self._exchange(method, url, where, data, document, headers))
        fine = answer.status in set(statuses) if statuses is not None else answer.status < 400
        if fine:
            return answer
        if answer.status in (401, 403):
            raise PermissionError(f"{where}: the device refuses the user or password (HTTP {answer.status})")
        raise PowerError(f"{where}: the device answered HTTP {answer.status}")

    def _exchange(
        self,
        method: str,
        url: str,
        where: str,
        data: str | Mapping[str, str] | None,
        document: Any,
        headers: Mapping[str, str] | None,
    ) -> Answer:
        body = data.encode() if isinstance(data, str) else data
        with self._session.request(
            method,
            url,
            data=body,
            json=document,
            headers=dict(headers or {}),
            timeout=self._timeout,
            stream=True,
            allow_redirects=method in ("GET", "HEAD"),  # a redirected POST would come back as a GET that does nothing
        ) as response:
            if response.is_redirect:
                raise PowerError(f"{where}: the device sends us elsewhere (HTTP {response.status_code}); mend the url")
            content = b""
            for chunk in response.iter_content(8192):
                content += chunk
                if len(content) > _LARGEST:
                    raise PowerError(f"{where}: the answer is larger than {_LARGEST >> 20} MiB")
            text = content.decode(response.encoding or "utf-8", errors="replace")
            return Answer(response.status_code, text, where)

    def _guarded(self, where: str, exchange: Callable[[], Answer]) -> Answer:
        """Run the exchange, for `timeout` at most; that of requests is for each piece of the answer."""
        try:
            with self._bound.bounded(self._timeout + _GRACE):
                answer = self._explained(where, exchange)
            if not self._bound.expired:  # else it may be cut short
                return answer
        except OSError:
            if not self._bound.expired:
                raise
        raise TimeoutError(f"{where}: the answer was not complete after {self._timeout:g} s")

    def _explained(self, where: str, exchange: Callable[[], Answer]) -> Answer:
        import requests

        try:
            return exchange()
        except requests.Timeout:
            raise TimeoutError(f"{where}: no answer within {self._timeout:g} s") from None
        except requests.exceptions.SSLError as error:
            raise ConnectionError(f"{where}: TLS failed: {_tls_reason(error)} (tls_ca names its authority)") from None
        except requests.TooManyRedirects:
            raise PowerError(f"{where}: the device sends us around in a circle") from None
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            raise ConnectionError(f"{where}: {_reason(error)}") from None
        except requests.RequestException as error:
            raise PowerError(f"{where}: {type(error).__name__}") from None


def check_url(field_name: str, url: str) -> None:
    """Raise `ConfigurationError` for what is no http or https URL with a host."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise ConfigurationError(f"{field_name} must be http://HOST... or https://HOST...")


def check_timeout(timeout: float) -> None:
    """Raise `ConfigurationError` for a time that makes no sense."""
    if not 0 < timeout <= 120:
        raise ConfigurationError(f"timeout is {timeout:g}, must be more than 0 and at most 120 seconds")


def _public(url: str) -> str:
    """`url` without what may be secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _reason(error: BaseException) -> str:
    """What the operating system said, from inside the layers of requests; their own texts hold the whole URL."""
    seen: set[int] = set()
    queue: list[Any] = [error]
    while queue:
        one = queue.pop()
        if id(one) in seen or not isinstance(one, BaseException):
            continue
        seen.add(id(one))
        if isinstance(one, OSError) and one.strerror:
            return str(one.strerror)
        queue += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
    return "the connection broke before the answer was complete"


def _tls_reason(error: BaseException) -> str:
    text = str(error)
    for words in ("certificate verify failed", "hostname mismatch", "wrong version number", "certificate has expired"):
        if words in text.lower():
            return words
    return "the certificate or protocol is not acceptable"
