# SPDX-License-Identifier: Apache-2.0
"""The lab's authority: what it signs is accepted by TLS, for the names it says, and can be renewed."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from controller_harness import run_cli
from cryptography import x509

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_controller import ca
from jumpstarter_controller.main import cli


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


def test_the_authority_is_renewed_with_its_key(tmp_path: Path) -> None:
    run_cli("ca", "init", "--dir", tmp_path, "--days", "10")
    run_cli("ca", "issue", "--dir", tmp_path, "--days", "5", "lab.example.org")
    old = (tmp_path / "ca.crt").read_bytes()
    run_cli("ca", "renew", "--dir", tmp_path, "--out", "ca", "--days", "1000")
    _handshake(tmp_path, "lab.example.org")  # who has the new one accepts what it signed before
    run_cli("ca", "renew", "--dir", tmp_path, "--days", "5")
    (tmp_path / "ca.crt").write_bytes(old)
    _handshake(tmp_path, "lab.example.org")  # and who has the old one accepts what it signs now


def test_no_certificate_outlives_the_authority(tmp_path: Path) -> None:
    run_cli("ca", "init", "--dir", tmp_path, "--days", "10")
    run_cli("ca", "issue", "--dir", tmp_path, "--days", "300", "localhost")
    authority, server = (x509.load_pem_x509_certificate((tmp_path / f"{n}.crt").read_bytes()) for n in ("ca", "server"))
    assert server.not_valid_after_utc == authority.not_valid_after_utc


def test_an_expired_authority_signs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ca, "_CLOCK_SKEW", timedelta(days=20))
    monkeypatch.setattr(ca, "timedelta", lambda days: timedelta(days=days - 12))
    run_cli("ca", "init", "--dir", tmp_path, "--days", "10")
    with pytest.raises(ConfigurationError, match=r"ca\.crt has expired on .*: renew it"):
        run_cli("ca", "issue", "--dir", tmp_path, "localhost")
    assert not (tmp_path / "server.crt").exists()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_key_that_others_can_read_is_not_used(tmp_path: Path, mode: int) -> None:
    run_cli("ca", "init", "--dir", tmp_path)
    (tmp_path / "ca.key").chmod(mode)
    with pytest.raises(ConfigurationError, match=rf"ca\.key can be read by others .*{mode:04o}.*chmod 600"):
        run_cli("ca", "issue", "--dir", tmp_path, "localhost")


def test_show_lists_what_ends_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_cli("ca", "init", "--dir", tmp_path, "--name", "lab 7")
    run_cli("ca", "issue", "--dir", tmp_path, "--days", "10", "lab.example.org")
    run_cli("ca", "issue", "--dir", tmp_path, "--days", "100", "--out", "router", "router.example.org")
    capsys.readouterr()
    run_cli("ca", "show", "--dir", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["server.crt", "router.crt", "ca.crt"]
    assert "lab.example.org" in lines[0] and lines[0].endswith("9 days left: EXPIRES SOON")
    assert "lab 7" in lines[2] and lines[2].endswith("ok")
    assert cli.main(["ca", "show", "--dir", str(tmp_path), "--check"], standalone_mode=False) == 1
    assert not cli.main(["ca", "show", "--dir", str(tmp_path), "--check", "--within", "1d"], standalone_mode=False)


def test_keys_are_written_private_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        run_cli("ca", "init", "--dir", tmp_path / "ca")
        run_cli("ca", "issue", "--dir", tmp_path / "ca", "localhost")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "ca" / "ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "ca" / "server.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700
