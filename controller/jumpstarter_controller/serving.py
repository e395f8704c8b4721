# SPDX-License-Identifier: Apache-2.0
"""A TLS port whose certificate can be renewed."""

from __future__ import annotations

import logging
import socket
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from jumpstarter.common.exceptions import ConfigurationError

__all__ = ["Certificate", "bind", "check_authority"]

logger = logging.getLogger(__name__)


class Certificate:
    """The server's certificate. A renewed one is used from the next connection on.

    client_ca: whoever connects must show a certificate that this authority has signed.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self._files = (certificate, key) if client_ca is None else (certificate, key, client_ca)
        self._seen = self._stamp()
        self._current = self._read()
        if key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            logger.warning("TLS key %s can be read by others than its owner: chmod 600", key)

    def credentials(self) -> grpc.ServerCredentials:
        """For the server's port."""
        return grpc.dynamic_ssl_server_credentials(
            self._current, self._newer, require_client_authentication=len(self._files) > 2
        )

    def _newer(self) -> Any:
        """Called by gRPC for every connection: the certificate when it has changed, else None."""
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return None
            self._current, self._seen = self._read(), stamp
        except ConfigurationError as error:
            logger.error("%s; the certificate in use stays", error)
            return None
        logger.info("TLS certificate %s has been read again", self._files[0])
        return self._current

    def _stamp(self) -> tuple[int, ...]:
        try:
            return tuple(path.stat().st_mtime_ns for path in self._files)
        except OSError as error:
            raise ConfigurationError(f"TLS file {error.filename} cannot be read: {error.strerror}") from None

    def _read(self) -> Any:
        try:
            certificate, key, *client_ca = (path.read_bytes() for path in self._files)
        except OSError as error:
            raise ConfigurationError(f"TLS file {error.filename} cannot be read: {error.strerror}") from None
        _check_pair(self._files[0], certificate, self._files[1], key)
        return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca[0] if client_ca else None)


def bind(server: Any, listen: str, credentials: grpc.ServerCredentials) -> str:
    """Listen on host:port; returns the address with the port that it got. Raises ConfigurationError."""
    try:
        port = server.add_secure_port(listen, credentials)
    except RuntimeError:
        raise ConfigurationError(f"cannot listen on {listen}: {_why_not(listen)}") from None
    return f"{listen.rpartition(':')[0]}:{port}"


def _why_not(listen: str) -> str:
    """What the system says to listening there: gRPC only logs it."""
    host, _, port = listen.rpartition(":")
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
    except OSError as error:
        return error.strerror or str(error)
    return "gRPC does not take it"


def check_authority(certificate: Path, authority: Path) -> None:
    """Raise ConfigurationError when clients that trust the one would not trust the other. Both are PEM files."""
    try:
        chain, trusted = _certificates(certificate, certificate.read_bytes()), authority.read_bytes()
        roots = _certificates(authority, trusted)
    except OSError as error:
        raise ConfigurationError(f"TLS file {error.filename} cannot be read: {error.strerror}") from None
    if not any(_issued(one, root) for one in chain for root in roots):
        raise ConfigurationError(
            f"the authority {authority} has not signed {certificate}: clients would not believe this server"
        )


def _issued(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _certificates(path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ConfigurationError(f"TLS file {path} holds no certificate in PEM format") from None


def _check_pair(path: Path, certificate: bytes, key_path: Path, key: bytes) -> None:
    """Raise ConfigurationError unless it is a certificate and its key. Warn of one that nobody accepts now."""
    own = _certificates(path, certificate)[0]
    try:
        public = serialization.load_pem_private_key(key, None).public_key()
    except (ValueError, TypeError):
        raise ConfigurationError(
            f"TLS file {key_path} holds no private key in PEM format, without passphrase"
        ) from None
    if public != own.public_key():
        raise ConfigurationError(f"TLS key {key_path} does not belong to certificate {path}")
    if not own.not_valid_before_utc <= datetime.now(UTC) <= own.not_valid_after_utc:
        logger.warning(
            "TLS certificate %s is valid from %s to %s, not now: nobody can connect until it is renewed",
            path,
            own.not_valid_before_utc,
            own.not_valid_after_utc,
        )
