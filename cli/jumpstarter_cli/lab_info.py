# SPDX-License-Identifier: Apache-2.0
"""What a lab says of itself before anybody is logged in, and whether it is to be believed.

A lab's own certificate authority is unknown to a machine that meets the lab for the first time. Then its fingerprint
decides: given on the command line, or compared by a person. With the authority that was accepted the connection is
made again, so that what is used afterwards came over a verified one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jumpstarter.common.exceptions import ConfigurationError, ConnectionError
from jumpstarter_cli.https import HttpRefusal, UntrustedCertificate, check_url, request_json, tls_context

__all__ = ["Authority", "LabInfo", "Trust", "authorities", "fetch_lab", "read_ca"]

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True)
class Authority:
    """A certificate. pem: itself. fingerprint: SHA-256, as openssl writes it: AB:CD:..."""

    pem: bytes
    fingerprint: str


@dataclass(frozen=True)
class OidcHint:
    """An issuer whose tokens the lab takes."""

    issuer: str
    client_id: str


@dataclass(frozen=True)
class LabInfo:
    """A lab. endpoint: host:port of its controller. ca: PEM, None for the system's authorities."""

    url: str
    endpoint: str
    namespace: str | None
    ca: bytes | None
    issuers: tuple[OidcHint, ...]


@dataclass(frozen=True)
class Trust:
    """Whom to believe. ca: PEM of an authority. fingerprint: of the lab's. insecure: everybody.

    ask: shows the fingerprints of the lab's authorities to a person and says whether they are right; None when there
    is nobody to ask.
    """

    ca: bytes | None = None
    fingerprint: str | None = None
    insecure: bool = False
    ask: Callable[[str, list[str]], bool] | None = None


def authorities(pem: bytes) -> list[Authority]:
    """The certificates in a PEM file. Raises `ConfigurationError` when there is none."""
    found = []
    for match in _PEM.findall(pem):
        try:
            der = ssl.PEM_cert_to_DER_cert(match.decode("ascii"))
        except (ValueError, UnicodeDecodeError):
            raise ConfigurationError("the lab's CA is no certificate in PEM") from None
        digest = hashlib.sha256(der).hexdigest().upper()
        found.append(Authority(match + b"\n", ":".join(digest[i : i + 2] for i in range(0, len(digest), 2))))
    if not found:
        raise ConfigurationError("the lab's CA is no certificate in PEM")
    return found


def read_ca(path: str) -> bytes:
    """The PEM file of the option --ca. Raises `ConfigurationError`."""
    try:
        pem = Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"--ca {path} cannot be read: {error.strerror or error}") from None
    try:
        authorities(pem)
    except ConfigurationError:
        raise ConfigurationError(f"--ca {path} holds no certificate in PEM") from None
    return pem


def _bare(fingerprint: str) -> str:
    """A fingerprint in one form. Raises `ConfigurationError`."""
    text = re.sub(r"^sha256[:=]", "", fingerprint.strip().lower()).replace(":", "").replace(" ", "")
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ConfigurationError(f'"{fingerprint}" is no SHA-256 fingerprint: 32 bytes in hexadecimal, as in AB:CD:...')
    return text


def fetch_lab(address: str, trust: Trust) -> LabInfo:
    """Ask the lab at `address` (host, host:port or URL).

    Raises `ConnectionError`, `UntrustedCertificate`, `ConfigurationError`.
    """
    url = address if "://" in address else f"https://{address}"
    check_url(url, "lab", allow_http=trust.insecure)
    url = f"{url.rstrip('/')}/v1/auth/config"
    if trust.insecure:
        return _info(url, _get(url, tls_context(insecure=True)), None)
    wanted = _bare(trust.fingerprint) if trust.fingerprint else None
    if url.startswith("http:"):
        return _info(url, _get(url, tls_context()), None)
    if wanted is None:
        try:
            data = _get(url, tls_context(trust.ca, only=trust.ca is not None))
            return _info(url, data, trust.ca or _bundle(url, data))
        except UntrustedCertificate as error:
            if trust.ca is not None:
                raise
            refused: UntrustedCertificate | None = error
    else:
        refused = None
    # Not verified yet, and not believed: this only learns which authority the lab claims to have.
    bundle = _bundle(url, _get(url, tls_context(insecure=True)))
    if bundle is None:
        raise refused or ConnectionError(f"lab {address}: it names no authority of its own (caBundle) to compare")
    accepted = _accept(address, authorities(bundle), wanted, trust, refused)
    data = _get(url, tls_context(accepted, only=True))
    return _info(url, data, accepted)


def _accept(
    address: str, found: list[Authority], wanted: str | None, trust: Trust, refused: UntrustedCertificate | None
) -> bytes:
    """The authorities that are believed, as PEM."""
    shown = [authority.fingerprint for authority in found]
    if wanted is not None:
        right = [authority.pem for authority in found if _bare(authority.fingerprint) == wanted]
        if not right:
            raise UntrustedCertificate(
                f"lab {address}: its authority is another one than asked for: it has SHA-256 {', '.join(shown)}"
            )
        return b"".join(right)
    if trust.ask is None:
        raise UntrustedCertificate(
            f"{refused}; if its authority's SHA-256 fingerprint {', '.join(shown)} is the lab's, give it with "
            "--ca-fingerprint"
        )
    if not trust.ask(address, shown):
        raise UntrustedCertificate(f"lab {address}: its authority was not accepted; nothing was sent to it")
    return b"".join(authority.pem for authority in found)


def _get(url: str, context: ssl.SSLContext) -> dict[str, Any]:
    try:
        return request_json(url, context, "lab")
    except HttpRefusal as error:
        hint = "; is it the lab's login address?" if error.status == 404 else ""
        raise ConnectionError(f"{error}{hint}") from None


def _bundle(url: str, data: dict[str, Any]) -> bytes | None:
    text = data.get("caBundle")
    if not text:
        return None
    try:
        return base64.b64decode("".join(str(text).split()), validate=True)
    except (binascii.Error, ValueError):
        raise ConnectionError(f"lab: {url}: caBundle is not base64") from None


def _info(url: str, data: dict[str, Any], ca: bytes | None) -> LabInfo:
    endpoint, namespace = data.get("grpcEndpoint"), data.get("namespace")
    if not isinstance(endpoint, str) or not endpoint:
        raise ConnectionError(f"lab: {url}: the answer has no grpcEndpoint; is it the lab's login address?")
    hints = []
    for item in data.get("oidc") or []:
        if isinstance(item, dict) and item.get("issuer"):
            hints.append(OidcHint(str(item["issuer"]), str(item.get("clientId") or "")))
    return LabInfo(url, endpoint, str(namespace) if namespace else None, ca, tuple(hints))
