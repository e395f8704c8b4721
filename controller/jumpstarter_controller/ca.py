# SPDX-License-Identifier: Apache-2.0
"""The lab's own certificate authority: two files, and certificates for hosts signed by them."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from jumpstarter.common.exceptions import ConfigurationError

__all__ = ["CA_CERTIFICATE", "CA_KEY", "init_ca", "issue_certificate", "renew_certificate"]

CA_CERTIFICATE = "ca.crt"
CA_KEY = "ca.key"
#: Certificates are valid from this long ago, for hosts whose clock is late.
_CLOCK_SKEW = timedelta(hours=1)


def init_ca(folder: Path, name: str, days: int) -> Path:
    """Make an authority in ``folder``. Returns its certificate's path. Raises ConfigurationError if there is one."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = _builder(subject, subject, key.public_key(), days).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    builder = builder.add_extension(_usage(sign=True), critical=True)
    _write_new(folder / CA_KEY, _key_pem(key), 0o600)
    _write_new(folder / CA_CERTIFICATE, _pem(builder.sign(key, hashes.SHA256())), 0o644)
    return folder / CA_CERTIFICATE


def issue_certificate(folder: Path, out: str, hosts: Sequence[str], days: int) -> tuple[Path, Path]:
    """A certificate for these host names and addresses: ``out``.crt and ``out``.key in the authority's folder.

    Raises ConfigurationError when the files exist or the authority cannot be read.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _sign(folder, key.public_key(), hosts, days)
    paths = folder / f"{out}.crt", folder / f"{out}.key"
    _write_new(paths[1], _key_pem(key), 0o600)
    _write_new(paths[0], _pem(certificate), 0o644)
    return paths


def renew_certificate(folder: Path, out: str, days: int) -> Path:
    """Replace ``out``.crt by one for the same hosts and the same key, valid from now on, in one step."""
    path = folder / f"{out}.crt"
    old = _load_certificate(path)
    try:
        names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise ConfigurationError(f"{path} is not for a host: it cannot be renewed") from None
    key = old.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigurationError(f"{path} was not made by `jumpstarter-controller ca issue`: it cannot be renewed")
    certificate = _sign(folder, key, [str(name.value) for name in names], days)
    fresh = path.with_suffix(".crt.new")
    fresh.write_bytes(_pem(certificate))
    fresh.replace(path)
    return path


def _sign(folder: Path, key: ec.EllipticCurvePublicKey, hosts: Sequence[str], days: int) -> x509.Certificate:
    authority, signer = _load_certificate(folder / CA_CERTIFICATE), _load_key(folder / CA_KEY)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    builder = (
        _builder(subject, authority.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign=False), critical=True)
        .add_extension(usage, critical=False)
        .add_extension(issuer_id, critical=False)
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
    )
    return builder.sign(signer, hashes.SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        key_cert_sign=sign,
        crl_sign=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"certificate {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is not a certificate in PEM") from error


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise ConfigurationError(f"key {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{path} is not a private key in PEM without a passphrase") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"{path} was not made by `jumpstarter-controller ca init`")
    return key


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
    except FileExistsError:
        raise ConfigurationError(f"{path} exists already; it is not overwritten") from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror or error}") from error
