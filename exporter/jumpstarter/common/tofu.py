# SPDX-License-Identifier: Apache-2.0
"""Trust in whatever certificate a server presents: what ``tls: {insecure: true}`` asks for.

gRPC verifies always. So the certificate is fetched first, without verification, and is then the one that is trusted,
under the name that it bears.
"""

from __future__ import annotations

import socket
import ssl

from jumpstarter.common.exceptions import ConfigurationError, ConnectionError

__all__ = ["presented_certificate"]

_TIMEOUT_SECONDS = 5.0


def presented_certificate(endpoint: str) -> tuple[bytes, str | None]:
    """The certificate (PEM) that host:port presents and a name that it is valid for (None: only its address is).

    Blocks, 5 seconds at most for each of the host's addresses. Raises ConfigurationError for an endpoint that is no
    host:port, ConnectionError when nothing there speaks TLS.
    """
    host, colon, port = endpoint.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ConfigurationError(f'endpoint "{endpoint}" is not HOST:PORT')
    address = (host.strip("[]"), int(port))
    plain = ssl.create_default_context()
    plain.check_hostname = False
    plain.verify_mode = ssl.CERT_NONE
    try:
        with _connected(address, plain) as connection:
            der = connection.getpeercert(binary_form=True)
        if der is None:
            raise ConnectionError(f"{endpoint} presents no TLS certificate")
        pem = ssl.DER_cert_to_PEM_cert(der)
        return pem.encode(), _name(address, pem)
    except OSError as error:
        raise ConnectionError(f"{endpoint} cannot be asked for its TLS certificate: {error}") from error


def _connected(address: tuple[str, int], context: ssl.SSLContext) -> ssl.SSLSocket:
    connection = socket.create_connection(address, _TIMEOUT_SECONDS)
    try:
        return context.wrap_socket(connection, server_hostname=address[0])
    except BaseException:
        connection.close()
        raise


def _name(address: tuple[str, int], pem: str) -> str | None:
    """The first name in the certificate. Python reads a certificate only for a connection that it has verified."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    trusting.load_verify_locations(cadata=pem)
    with _connected(address, trusting) as connection:
        found = connection.getpeercert() or {}
    names = [str(entry[1]) for entry in found.get("subjectAltName", ())]
    return None if not names or address[0] in names else names[0]
