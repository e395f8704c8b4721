# SPDX-License-Identifier: Apache-2.0
"""Small JSON requests over HTTPS, for logging in. Standard library only."""

from __future__ import annotations

import ipaddress
import json
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from jumpstarter.common.exceptions import ConfigurationError, ConnectionError, JumpstarterException

__all__ = ["HttpRefusal", "UntrustedCertificate", "check_url", "request_json", "tls_context"]

_SECONDS = 30.0
_MAX_BYTES = 1 << 20


class HttpRefusal(JumpstarterException):
    """The server answered with an error. status: of HTTP. data: the JSON object it sent, or {}."""

    def __init__(self, message: str, status: int, data: dict[str, Any]) -> None:
        super().__init__(message)
        self.status = status
        self.data = data


class UntrustedCertificate(ConnectionError):
    """The server's certificate does not come from an authority that is trusted here."""


def tls_context(ca: bytes | None = None, *, only: bool = False, insecure: bool = False) -> ssl.SSLContext:
    """What to trust: the system's authorities ($SSL_CERT_FILE) and `ca` (PEM), or `ca` alone when `only`.

    insecure: everything. Raises `ConfigurationError` when `ca` holds no certificate.
    """
    if insecure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if only else ssl.create_default_context()
    if ca:
        try:
            context.load_verify_locations(cadata=ca.decode("ascii"))
        except (ssl.SSLError, UnicodeDecodeError, ValueError):
            raise ConfigurationError("the authority's certificate is no certificate in PEM") from None
    return context


def check_url(url: str, what: str, *, allow_http: bool = False) -> str:
    """`url` if it is https (or http to this very machine, or http that is allowed). Raises `ConfigurationError`."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ConfigurationError(f'{what}: "{url}" is not a URL') from None
    if not host or parts.username is not None or any(sign.isspace() for sign in url):
        raise ConfigurationError(f'{what}: "{url}" is not a URL')
    if parts.scheme == "https" or (parts.scheme == "http" and (allow_http or _is_loopback(host))):
        return url
    raise ConfigurationError(f"{what}: {url} is not https; secrets would go over the net for everybody to read")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Secrets go where they were meant to go, or nowhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Never."""
        return None


def request_json(url: str, context: ssl.SSLContext, what: str, form: Mapping[str, str] | None = None) -> dict[str, Any]:
    """GET, or POST `form`, and the JSON object that is answered.

    what: opens every error. Raises `HttpRefusal`, `UntrustedCertificate`, `ConnectionError`.
    """
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _NoRedirects)
    data = urlencode(form).encode() if form is not None else None
    request = urllib.request.Request(url, data=data, headers={"Accept": "application/json"})
    try:
        with opener.open(request, timeout=_SECONDS) as answer:
            return _object(answer.read(_MAX_BYTES + 1), f"{what}: {url}")
    except urllib.error.HTTPError as error:
        with error:
            body = error.read(_MAX_BYTES)
        raise HttpRefusal(f"{what}: {url} answers {error.code} {error.reason}", error.code, _lenient(body)) from None
    except (OSError, ValueError) as error:
        raise _explain(error, f"{what}: {url}") from None


def _explain(error: Exception, where: str) -> JumpstarterException:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return UntrustedCertificate(f"{where}: its certificate is not trusted here: {reason.verify_message}")
    if isinstance(reason, ssl.SSLError):
        return ConnectionError(f"{where}: TLS fails: {reason.reason or reason}")
    if isinstance(reason, TimeoutError):
        return ConnectionError(f"{where}: no answer within {_SECONDS:g} s")
    if isinstance(reason, socket.gaierror):
        return ConnectionError(f"{where}: the name cannot be resolved")
    if isinstance(reason, OSError) and reason.strerror:
        return ConnectionError(f"{where}: {reason.strerror.lower()}")
    return ConnectionError(f"{where}: {reason}")


def _object(body: bytes, where: str) -> dict[str, Any]:
    if len(body) > _MAX_BYTES:
        raise ConnectionError(f"{where}: the answer is longer than {_MAX_BYTES >> 20} MiB")
    try:
        data = json.loads(body)
    except ValueError:
        raise ConnectionError(f"{where}: the answer is not JSON; is it the right address?") from None
    if not isinstance(data, dict):
        raise ConnectionError(f"{where}: the answer is not a JSON object; is it the right address?")
    return data


def _lenient(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
