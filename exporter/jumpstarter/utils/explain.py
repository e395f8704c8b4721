# SPDX-License-Identifier: Apache-2.0
"""What gRPC says about a connection that cannot be made, in words that say what to do."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["why_unreachable"]

_COMMAND_LINE = {"ca": "--tls-ca", "cert": "--tls-cert", "key": "--tls-key", "insecure": "--tls-grpc-insecure"}

#: Part of gRPC's text, and what it means. The first that is found counts.
_MEANINGS = (
    ("CERTIFICATE_VERIFY_FAILED", "its certificate does not come from a CA known here ({ca} names the lab's)"),
    ("certificate signature failure", "its certificate comes from another CA than the one of this name ({ca})"),
    ("is not in peer certificate", "its certificate is for another name than the one asked for"),
    ("Hostname Verification", "its certificate is for another name than the one asked for"),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS there ({insecure}, if that is meant)"),
    ("Connection refused", "nothing listens there (connection refused)"),
    ("No such file or directory", "there is no such socket: the exporter or the shell it belongs to has ended"),
    ("Name or service not known", "the name cannot be resolved"),
    ("DNS resolution failed", "the name cannot be resolved"),
    ("No route to host", "no route to host"),
    ("Network is unreachable", "the network is unreachable"),
    ("Permission denied", "no permission to use the socket"),
    ("Deadline Exceeded", "no answer in time"),
)
_HUNG_UP = ("Socket closed", "Connection reset", "closed connection", "GOAWAY", "TSI_PROTOCOL_FAILURE")


def why_unreachable(details: str, *, secure: bool, names: Mapping[str, str] = _COMMAND_LINE) -> str:
    """One short phrase for gRPC's `details`; the details themselves when they are not known here.

    secure: whether TLS was tried. names: what the settings ca, cert, key and insecure are called where the reader set
    them.
    """
    for part, meaning in _MEANINGS:
        if part.lower() in details.lower():
            return meaning.format(**names)
    if any(part in details for part in _HUNG_UP):
        if secure:
            return "it ended the TLS handshake; it may ask for a client certificate ({cert} and {key})".format(**names)
        return "it hung up; it may want TLS (leave {insecure} out)".format(**names)
    return details
