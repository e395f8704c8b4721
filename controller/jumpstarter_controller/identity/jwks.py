# SPDX-License-Identifier: Apache-2.0
"""The keys that an issuer publishes: fetched over HTTPS, with limits, and parsed."""

from __future__ import annotations

import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from jumpstarter.common.exceptions import ConfigurationError

__all__ = ["Key", "KeysUnavailable", "fetch_keys", "trust"]

#: Seconds for one answer, and its bytes.
_TIMEOUT, _MAX_BYTES = 10.0, 1 << 20
_MAX_KEYS = 100
_MIN_RSA_BITS = 2048


class Key(NamedTuple):
    """A public key, and the only algorithm that it is for (None: any that fits)."""

    public: Any
    algorithm: str | None


class KeysUnavailable(Exception):
    """The issuer's keys cannot be had: one line that says why."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An issuer is where the configuration says that it is."""

    def redirect_request(self, *_: Any) -> None:
        return None


def trust(authority: str | Path | None, url: str) -> ssl.SSLContext:
    """Whom to believe to be the issuer: an authority (PEM text or file), or the system's.

    Raises ConfigurationError.
    """
    try:
        if isinstance(authority, Path):
            return ssl.create_default_context(cadata=authority.read_text())
        return ssl.create_default_context(cadata=authority)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise ConfigurationError(f"issuer {url}: its certificateAuthority cannot be used: {error}") from error


def fetch_keys(url: str, context: ssl.SSLContext) -> dict[str, Key]:
    """The keys of the issuer at ``url``, by kid. Blocks. Raises `KeysUnavailable`."""
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _NoRedirect())
    discovery = _get(opener, f"{url.rstrip('/')}/.well-known/openid-configuration")
    if discovery.get("issuer") != url:
        raise KeysUnavailable(f'what is there calls itself "{str(discovery.get("issuer"))[:100]}"')
    place = discovery.get("jwks_uri")
    if not isinstance(place, str) or urlsplit(place).scheme != "https":
        raise KeysUnavailable("its jwks_uri is not an https URL")
    keys = _parse(_get(opener, place))
    if not keys:
        raise KeysUnavailable(f"{place} has no key that can be used")
    return keys


def _get(opener: urllib.request.OpenerDirector, url: str) -> dict[str, Any]:
    deadline = time.monotonic() + _TIMEOUT
    data = b""
    try:
        request = urllib.request.Request(url, headers={"Accept": "application/json"})
        with opener.open(request, timeout=_TIMEOUT) as response:
            while chunk := response.read1(65536):
                data += chunk
                if len(data) > _MAX_BYTES:
                    raise KeysUnavailable(f"{url} answers with more than {_MAX_BYTES} bytes")
                if time.monotonic() > deadline:
                    raise KeysUnavailable(f"{url} takes longer than {_TIMEOUT:g}s to answer")
        value = json.loads(data)
    except urllib.error.HTTPError as error:
        raise KeysUnavailable(f"{url} answers {error.code}") from error
    except urllib.error.URLError as error:
        raise KeysUnavailable(f"{url}: {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise KeysUnavailable(f"{url}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise KeysUnavailable(f"{url} does not answer with JSON") from error
    if not isinstance(value, dict):
        raise KeysUnavailable(f"{url} does not answer with a JSON object")
    return value


def _parse(document: dict[str, Any]) -> dict[str, Key]:
    """The usable ones: public, for signatures, long enough, and with a name."""
    listed = document.get("keys")
    found: dict[str, Key] = {}
    for raw in listed[:_MAX_KEYS] if isinstance(listed, list) else ():
        if not isinstance(raw, dict) or raw.get("kty") not in ("RSA", "EC", "OKP"):
            continue
        if raw.get("use", "sig") != "sig":
            continue
        try:
            public = jwt.PyJWK(raw).key
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            continue  # of a kind that is not known here; others may be
        if hasattr(public, "public_key"):
            public = public.public_key()  # an issuer that publishes its private key
        if isinstance(public, rsa.RSAPublicKey) and public.key_size < _MIN_RSA_BITS:
            continue
        algorithm = raw.get("alg")
        found[str(raw.get("kid", ""))] = Key(public, algorithm if isinstance(algorithm, str) else None)
    return found
