# SPDX-License-Identifier: Apache-2.0
"""The lab's authority: what it signs is accepted by TLS, for the names it says, and can be renewed."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from controller_harness import run_cli

from jumpstarter.common.exceptions import ConfigurationError


def _handshake(folder: Path, name: str) -> dict[str, object]:
    """Certificate that a client, which trusts the authority alone, accepts for ``name``."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.crt", folder / "server.key")
    near, far = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(far, server_side=True).close()
        except OSError:
            far.close()  # the client did not like it, which is what the test is about

    thread = threading.Thread(target=serve)
    thread.start()
    client = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        with client.wrap_socket(near, server_hostname=name) as connection:
            return dict(connection.getpeercert() or {})
    finally:
        near.close()
        thread.join(10)


def test_issue_and_renew(tmp_path: Path) -> None:
    run_cli("ca", "init", "--dir", tmp_path, "--name", "lab 7")
    run_cli("ca", "issue", "--dir", tmp_path, "--days", "30", "lab.example.org", "127.0.0.1", "::1")
    for name in ("ca.key", "server.key"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    first = _handshake(tmp_path, "lab.example.org")
    assert first["issuer"] == ((("commonName", "lab 7"),),)
    for name in ("127.0.0.1", "::1"):
        _handshake(tmp_path, name)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        _handshake(tmp_path, "other.example.org")
    run_cli("ca", "renew", "--dir", tmp_path, "--days", "300")
    second = _handshake(tmp_path, "lab.example.org")
    assert second["subjectAltName"] == first["subjectAltName"]
    assert second["serialNumber"] != first["serialNumber"]
    assert second["notAfter"] != first["notAfter"]


def test_nothing_is_overwritten_and_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"certificate .*ca\.crt cannot be read"):
        run_cli("ca", "issue", "--dir", tmp_path, "localhost")
    run_cli("ca", "init", "--dir", tmp_path)
    with pytest.raises(ConfigurationError, match=r"ca\.key exists already"):
        run_cli("ca", "init", "--dir", tmp_path)
    with pytest.raises(ConfigurationError, match=r"server\.crt cannot be read"):
        run_cli("ca", "renew", "--dir", tmp_path)
