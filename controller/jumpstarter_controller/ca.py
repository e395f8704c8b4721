# SPDX-License-Identifier: Apache-2.0
"""The lab's own certificate authority: two files, and certificates for hosts and clients signed by them."""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from jumpstarter.common.exceptions import ConfigurationError

__all__ = [
    "CA_CERTIFICATE",
    "CA_KEY",
    "Listed",
    "init_ca",
    "issue_certificate",
    "issue_client_certificate",
    "list_certificates",
    "names_of",
    "renew_certificate",
]

CA_CERTIFICATE = "ca.crt"
CA_KEY = "ca.key"
#: Certificates are valid from this long ago, for hosts whose clock is late.
_CLOCK_SKEW = timedelta(hours=1)


def init_ca(folder: Path, name: str, days: int) -> Path:
    """Make an authority in ``folder``. Returns its certificate's path. Raises ConfigurationError if there is one."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _authority(key, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), days)
    _write_new(folder / CA_KEY, _key_pem(key), 0o600)
    _write_new(folder / CA_CERTIFICATE, _pem(certificate), 0o644)
    return folder / CA_CERTIFICATE


def issue_certificate(folder: Path, out: str, hosts: Sequence[str], days: int) -> tuple[Path, Path]:
    """A certificate for these host names and addresses: ``out``.crt and ``out``.key in the authority's folder.

    It ends with the authority at the latest. Raises ConfigurationError when the files exist, or the authority cannot be
    read or has expired.
    """
    paths, _ = _issue(folder, out, hosts[0], [_host(host) for host in hosts], days, server=True)
    return paths


def issue_client_certificate(
    folder: Path, out: str, name: str, uri: str, days: int
) -> tuple[tuple[Path, Path], x509.Certificate]:
    """A certificate for a client or exporter, which ``uri`` names. As `issue_certificate`."""
    return _issue(folder, out, name, [x509.UniformResourceIdentifier(uri)], days, server=False)


def _issue(
    folder: Path, out: str, common: str, names: Sequence[x509.GeneralName], days: int, *, server: bool
) -> tuple[tuple[Path, Path], x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _sign(folder, key.public_key(), common, names, days, server=server)
    paths = folder / f"{out}.crt", folder / f"{out}.key"
    _write_new(paths[1], _key_pem(key), 0o600)
    _write_new(paths[0], _pem(certificate), 0o644)
    return paths, certificate


def renew_certificate(folder: Path, out: str, days: int) -> tuple[Path, x509.Certificate]:
    """Replace ``out``.crt by one for the same names and the same key, valid from now on, in one step.

    With ``ca`` it is the authority itself: what it signed stays valid, for those who know its old certificate too.
    """
    path = folder / f"{out}.crt"
    old = _load_certificate(path)
    key = old.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigurationError(f"{path} was not made by `jumpstarter-controller ca`: it cannot be renewed")
    if path.name == CA_CERTIFICATE:
        signer = _load_key(folder / CA_KEY)
        if signer.public_key() != key:
            raise ConfigurationError(f"{path} and {CA_KEY} do not belong together")
        certificate = _authority(signer, old.subject, days)
    else:
        names, common = names_of(old), old.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if not names or not common:
            raise ConfigurationError(f"{path} is not for a host or a client: it cannot be renewed")
        server = not any(isinstance(name, x509.UniformResourceIdentifier) for name in names)
        certificate = _sign(folder, key, str(common[0].value), names, days, server=server)
    fresh = path.with_suffix(".crt.new")
    fresh.unlink(missing_ok=True)
    _write_new(fresh, _pem(certificate), 0o644)
    fresh.replace(path)
    return path, certificate


@dataclass(frozen=True)
class Listed:
    """A certificate in the authority's folder. names: whom it is for. left: time until it ends, negative after that."""

    path: Path
    names: tuple[str, ...]
    ends: datetime
    left: timedelta


def list_certificates(folder: Path) -> list[Listed]:
    """The certificates in the folder, the one that ends first at the head. Raises ConfigurationError."""
    found = []
    for path in sorted(folder.glob("*.crt")):
        certificate = _load_certificate(path)
        names = [str(name.value) for name in names_of(certificate)]
        if not names:
            names = [str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        ends = certificate.not_valid_after_utc
        found.append(Listed(path, tuple(names), ends, ends - datetime.now(UTC)))
    if not found:
        raise ConfigurationError(f"there is no certificate in {folder}")
    return sorted(found, key=lambda each: each.ends)


def names_of(certificate: x509.Certificate) -> list[x509.GeneralName]:
    """Whom a certificate is for."""
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def _sign(
    folder: Path,
    key: ec.EllipticCurvePublicKey,
    common: str,
    names: Sequence[x509.GeneralName],
    days: int,
    *,
    server: bool,
) -> x509.Certificate:
    authority, signer = _load_certificate(folder / CA_CERTIFICATE), _load_key(folder / CA_KEY)
    ends = authority.not_valid_after_utc
    if ends <= datetime.now(UTC):
        raise ConfigurationError(
            f"the authority {folder / CA_CERTIFICATE} has expired on {ends:%Y-%m-%d}: "
            "renew it (jumpstarter-controller ca renew --out ca) and give the new ca.crt to everybody"
        )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])
    client_auth, server_auth = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
    usage = x509.ExtendedKeyUsage([server_auth, client_auth] if server else [client_auth])
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    builder = (
        _builder(subject, authority.subject, key, days, ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign=False), critical=True)
        .add_extension(usage, critical=False)
        .add_extension(issuer_id, critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    return builder.sign(signer, hashes.SHA256())


def _authority(key: ec.EllipticCurvePrivateKey, subject: x509.Name, days: int) -> x509.Certificate:
    builder = _builder(subject, subject, key.public_key(), days).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    return builder.add_extension(_usage(sign=True), critical=True).sign(key, hashes.SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int, latest: datetime | None = None
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    ends = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(ends if latest is None else min(ends, latest))
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
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise ConfigurationError(
                f"key {path} can be read by others than its owner (mode {mode:04o}): chmod 600 it, and make a new "
                "authority if somebody may have read it"
            )
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
