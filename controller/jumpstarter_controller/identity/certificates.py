# SPDX-License-Identifier: Apache-2.0
"""Certificates that identify clients and exporters.

Whom one belongs to says a URI in it, ``jumpstarter://NAMESPACE/clients/NAME``; that it still counts says a row of its
serial number among the tokens, so that it is listed, revoked and worthless after a deletion just as they are.
"""

from __future__ import annotations

from datetime import datetime

from cryptography import x509

from jumpstarter_controller.identity.callers import Caller, Kind
from jumpstarter_controller.identity.keys import unauthenticated
from jumpstarter_controller.identity.tokens import Subject, caller_of, certificate_id, kind_of
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Token

__all__ = ["certificate_caller", "identity_uri", "parse_identity_uri", "record_certificate"]

_SCHEME = "jumpstarter://"


def identity_uri(kind: Kind, namespace: str, name: str) -> str:
    """What a certificate says of its holder."""
    return f"{_SCHEME}{namespace}/{kind}s/{name}"


def parse_identity_uri(uri: str) -> tuple[Kind, str, str] | None:
    """Kind, namespace and name that a certificate says; None when the URI is no such one."""
    parts = uri.removeprefix(_SCHEME).split("/")
    if not uri.startswith(_SCHEME) or len(parts) != 3:
        return None
    namespace, kinds, name = parts
    kind: Kind | None = "client" if kinds == "clients" else "exporter" if kinds == "exporters" else None
    return None if kind is None else (kind, namespace, name)


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    found = names.get_values_for_type(x509.UniformResourceIdentifier)
    return [uri for uri in found if uri.startswith(_SCHEME)]


def certificate_caller(tx: Transaction, pem: bytes) -> Caller | None:
    """The holder of a certificate that TLS has verified; None when it names none. Raises UNAUTHENTICATED."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        uris = _uris(certificate)
    except ValueError as error:
        raise unauthenticated(f"certificate is not valid: {str(error)[:200]}") from error
    if not uris:
        return None
    row = tx.session.get(Token, certificate_id(certificate.serial_number))
    if row is None:
        raise unauthenticated("certificate is unknown to this controller")
    caller = caller_of(tx, row, "certificate")
    if uris != [identity_uri(caller.kind, caller.namespace, caller.name)]:
        raise unauthenticated(f"certificate is not valid: it does not belong to {caller}")
    return caller


def record_certificate(
    tx: Transaction, subject: Subject, serial: int, expires: datetime, actor: str = "controller"
) -> None:
    """Let a certificate count until it expires or is revoked."""
    jti, kind = certificate_id(serial), kind_of(subject)
    tx.session.add(Token(jti=jti, kind=kind, subject_id=subject.id, issued_at=tx.now, expires_at=expires.timestamp()))
    names = {kind: subject.name}
    tx.audit(actor, "certificate issued", namespace=subject.namespace, jti=jti, **names)
