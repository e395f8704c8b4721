# SPDX-License-Identifier: Apache-2.0
"""Why an exporter's own port does not let us in, in terms of the host variables that describe it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

from .errors import AgentError, as_agent_error
from .reach import DirectReach

__all__ = ["explain_refusal"]

_PROBE_SECONDS = 3.0
_SPEAKS_TLS = "it speaks TLS"
_NAMES = {
    "ca": "jumpstarter_tls_ca",
    "cert": "jumpstarter_tls_cert",
    "key": "jumpstarter_tls_key",
    "insecure": "jumpstarter_insecure",
}


async def explain_refusal(reach: DirectReach, error: Exception) -> AgentError:
    """The error for a connection to `reach` that failed with `error`.

    Code "refused" when somebody is there and says no, "exporter_lost" when nobody is.
    """
    from jumpstarter.common.exceptions import ExporterRefusedError, ExporterUnreachableError
    from jumpstarter.utils.explain import why_unreachable

    if isinstance(error, ExporterRefusedError):
        what = "does not hold it" if reach.passphrase_file else "must name a file that holds it"
        named = f" {reach.passphrase_file}" if reach.passphrase_file else ""
        hint = f"missing or wrong passphrase (jumpstarter_passphrase_file{named} {what})"
        return AgentError("refused", f"exporter {reach.endpoint} refused us: {hint}")
    if not isinstance(error, ExporterUnreachableError):
        return as_agent_error(error)
    details = await _handshake(reach) or error.message
    if reach.insecure and details == _SPEAKS_TLS:
        why, answers = f"{details} (leave {_NAMES['insecure']} out, {_NAMES['ca']} names its CA)", True
    else:
        why = why_unreachable(details, secure=not reach.insecure, names=_NAMES)
        answers = any(name in why for name in _NAMES.values()) or "certificate" in why
    code = "refused" if answers else "exporter_lost"
    return AgentError(code, f"exporter {reach.endpoint} cannot be reached: {' '.join(why.split())}")


async def _handshake(reach: DirectReach) -> str:
    """What TLS itself says about the endpoint, empty when that is nothing new.

    gRPC tells what the last address of a name said: of "localhost", that nothing listens on ::1.
    """
    host, _, port = reach.endpoint.rpartition(":")
    try:
        context = ssl.create_default_context(cafile=reach.tls_ca)
        if reach.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        async with asyncio.timeout(_PROBE_SECONDS):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=context)
    except ssl.SSLError as error:
        return "" if reach.insecure else str(error)
    except (OSError, TimeoutError):
        return ""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return _SPEAKS_TLS if reach.insecure else ""
