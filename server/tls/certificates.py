"""Certificates for NAI's names, for clients that have its address built in.

The certificate authority (CA) is made together with the one certificate that it signs, and its private key is then
discarded, never written to a file: nothing else can be signed in its name, even by someone who reads all files of this
machine. Its certificate is also constrained to `novelai.net`. Both expire after 90 days; new ones are a new CA.
"""

import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.config.toml import ConfigError, require_regular_file

DOMAIN = "novelai.net"
NAMES = (f"image.{DOMAIN}", f"api.{DOMAIN}", f"text.{DOMAIN}", f"*.{DOMAIN}", DOMAIN)
AUTHORITY_NAME = "naiad local CA"
LIFETIME = timedelta(days=90)
BACKDATED = timedelta(hours=1)
"""Clocks of containers and virtual machines may be slow."""
RENEWAL = timedelta(days=30)
"""Time before the end from which `naiad tls install` makes new certificates, and a server warns at its start."""
NO_ADDRESSES = (
    x509.IPAddress(IPv4Network("0.0.0.0/0")),
    x509.IPAddress(IPv6Network("::/0")),
)
"""A constraint to a DNS name says nothing about addresses, so all of them are excluded."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """The files in a folder: the CA's certificate, and the server's certificate with its private key."""

    folder: Path

    @property
    def authority(self) -> Path:
        """File with the certificate of the CA, which clients must trust."""
        return self.folder / "ca.crt"

    @property
    def server(self) -> Path:
        """File with the server's certificate and private key; only its owner may read it."""
        return self.folder / "server.pem"

    def read_end(self) -> datetime:
        """Return the time at which the server's certificate expires.

        Raises:
            ConfigError: a file is missing or damaged, or the two do not belong together.
        """
        remedy = "run naiad tls install"
        for file in (self.authority, self.server):
            require_regular_file(file)
        try:
            authority = x509.load_pem_x509_certificate(self.authority.read_bytes())
            certificate = x509.load_pem_x509_certificate(self.server.read_bytes())
            certificate.verify_directly_issued_by(authority)
        except FileNotFoundError:
            raise ConfigError(f"tls: {self.folder} has no certificate; {remedy}") from None
        except OSError as error:
            raise ConfigError(f"tls: {error.filename}: {error.strerror}") from None
        except (ValueError, TypeError, InvalidSignature):
            raise ConfigError(
                f"tls: the certificates in {self.folder} are damaged or of different CAs; {remedy} --renew"
            ) from None
        return certificate.not_valid_after_utc

    def check(self, now: datetime) -> str | None:
        """Return a warning if the server's certificate expires soon; raise `ConfigError` if it is of no use."""
        end = self.read_end()
        if end <= now:
            raise ConfigError(f"tls: the certificate expired on {end:%Y-%m-%d}; run naiad tls install")
        if os.name == "posix" and self.server.stat().st_mode & 0o077:
            return f"tls: other users can read the key in {self.server}; run chmod 600 on it"
        if end - now > RENEWAL:
            return None
        return f"tls: the certificate expires on {end:%Y-%m-%d}; run naiad tls install, and trust the new CA"

    def build_context(self) -> ssl.SSLContext:
        """Return the context of a server with this certificate: TLS 1.2 or later, HTTP/1.1."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self.server)
        except ssl.SSLError:
            raise ConfigError(
                f"tls: {self.server} has no key of its certificate; run naiad tls install --renew"
            ) from None
        return context


def create_certificates(folder: Path, now: datetime) -> Certificates:
    """Write a new CA and the server's certificate to a folder, in place of those it has."""
    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = _build_authority(authority_key, now)
    certificate = build_certificate(authority, authority_key, server_key.public_key(), NAMES, now)
    key = server_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    created = Certificates(folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write(created.server, certificate.public_bytes(serialization.Encoding.PEM) + key, 0o600)
    _write(created.authority, authority.public_bytes(serialization.Encoding.PEM), 0o644)
    return created


def _build_authority(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    """Return the self-signed certificate of a CA that may sign for `DOMAIN` and the names below it only."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, AUTHORITY_NAME)])
    constraints = x509.NameConstraints([x509.DNSName(DOMAIN)], list(NO_ADDRESSES))
    return (
        _start(name, name, key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(constraints, critical=True)
        .sign(key, hashes.SHA256())
    )


def build_certificate(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePublicKey,
    names: tuple[str, ...],
    now: datetime,
) -> x509.Certificate:
    """Return a server's certificate for some DNS names, signed by a CA."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        _start(subject, authority.subject, key, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(issuer_key, critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def _start(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime
) -> x509.CertificateBuilder:
    begin = now.astimezone(UTC) - BACKDATED
    return x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=begin,
        not_valid_after=begin + LIFETIME,
    ).add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    """Replace a file at once; until it is complete it has another name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
