# SPDX-License-Identifier: Apache-2.0
"""What a client may ask of one flash, beside image and target."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final
from urllib.parse import urlsplit

__all__ = ["METHODS", "Wish", "check_bearer", "check_headers"]

METHODS: Final = ("shell", "uboot", "fls")

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BEARER = re.compile(r"[!#-\[\]-~]+")
_MOST_RETRIES: Final = 20


def check_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """HTTP headers as they are sent. Raises ValueError for names and values that HTTP does not allow."""
    seen: dict[str, str] = {}
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"header {name!r} is no HTTP header name")
        if name.lower() in (known.lower() for known in seen):
            raise ValueError(f"header {name!r} is given twice")
        if any(ord(char) < 32 or ord(char) == 127 for char in value):
            raise ValueError(f"header {name}: its value holds a control character")
        seen[name] = value
    return seen


def check_bearer(token: str) -> str:
    """A bearer token. Raises ValueError (without the token) for what cannot be one."""
    if len(token) > 4096 or not _BEARER.fullmatch(token):
        raise ValueError("bearer token: up to 4096 printable ASCII characters without blank, quote and backslash")
    return token


@dataclass(frozen=True, kw_only=True)
class Wish:
    """Options of one flash; None takes what the exporter's configuration says.

    method: "shell", "uboot" or "fls". retries: attempts. power_off: whether the board is off after success. url: the
    board fetches the image from there itself; size and sha256 of it are then required with the flash. headers: sent
    with that; secret. insecure_tls, cacert (PEM): for that.
    """

    method: str | None = None
    retries: int | None = None
    power_off: bool | None = None
    url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    insecure_tls: bool = False
    cacert: str | None = None

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Wish:
        """From what a client sent. Raises ValueError."""
        values = dict(data)
        if unknown := sorted(set(values) - {one.name for one in fields(cls)}):
            raise ValueError(f"unknown flasher option {unknown[0]!r}")
        if values.get("method") is not None and values["method"] not in METHODS:
            raise ValueError(f"method {values['method']!r} is none of {', '.join(METHODS)}")
        if values.get("retries") is not None:
            values["retries"] = int(values["retries"])
            if not 1 <= values["retries"] <= _MOST_RETRIES:
                raise ValueError(f"retries: {values['retries']} is not between 1 and {_MOST_RETRIES}")
        if values.get("url") is not None:
            parts = urlsplit(values["url"])
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("url: is no http(s) URL")
            if parts.username is not None:
                raise ValueError("url: holds a login, which would show on the console; pass it as a header")
            if any(ord(char) <= 32 or ord(char) >= 127 for char in values["url"]):
                raise ValueError("url: holds a character that has to be percent-encoded")
        values["headers"] = check_headers(dict(values.get("headers") or {}))
        return cls(**values)
