"""Certificates that are good for NAI's names only, and for 90 days."""

import os
import ssl
import stat
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from server.config.toml import ConfigError
from server.tls import certificates
from server.tls.certificates import LIFETIME, RENEWAL, Certificates, build_certificate, create_certificates

NOW = datetime.now(UTC)


@pytest.fixture
def created(tmp_path):
    return create_certificates(tmp_path / "tls", NOW)


def connect(server_context, authority, name):
    """Let a client that trusts only this CA connect in memory under a name; raises what its verification raises."""
    context = ssl.create_default_context(cafile=authority)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    sent, received = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(received, sent, server_hostname=name)
    server = server_context.wrap_bio(sent, received, server_side=True)
    for side in (client, server, client):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return client.version()


@pytest.mark.parametrize("name", ["image.novelai.net", "api.novelai.net", "x1.novelai.net", "novelai.net"])
def test_a_client_that_trusts_the_ca_connects_under_nais_names(created, name):
    assert connect(created.build_context(), created.authority, name) == "TLSv1.3"


@pytest.mark.parametrize(
    "name", ["localhost", "127.0.0.1", "novelai.net.example", "a.b.novelai.net", "example.org"]
)
def test_it_does_not_connect_under_another_name(created, name):
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(created.build_context(), created.authority, name)


def issue(folder, *names):
    """Write certificates for other names, as someone with the CA's key could make them."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = certificates._build_authority(authority_key, NOW)
    alternatives = [
        x509.IPAddress(certificates.IPv4Network(name).network_address)
        if name[0].isdigit()
        else x509.DNSName(name)
        for name in names
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificates.x509, "SubjectAlternativeName", lambda _: x509_names(alternatives))
        certificate = build_certificate(authority, authority_key, key.public_key(), names, NOW)
    encoding, pem = certificates.serialization, certificates.serialization.Encoding.PEM
    private = key.private_bytes(pem, encoding.PrivateFormat.PKCS8, encoding.NoEncryption())
    issued = Certificates(folder)
    issued.authority.write_bytes(authority.public_bytes(pem))
    issued.server.write_bytes(certificate.public_bytes(pem) + private)
    return issued


x509_names = x509.SubjectAlternativeName


@pytest.mark.parametrize("name", ["example.org", "localhost", "127.0.0.1", "novelai.net.example"])
def test_even_with_its_key_the_ca_could_sign_for_no_other_name(tmp_path, name):
    issued = issue(tmp_path, name)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"subtree violation"):
        connect(issued.build_context(), issued.authority, name)


def test_the_ca_is_constrained_and_signs_no_other_ca(created):
    authority = x509.load_pem_x509_certificate(created.authority.read_bytes())
    constraints = authority.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    assert constraints.value.permitted_subtrees == [x509.DNSName("novelai.net")]
    basic = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.path_length) == (True, 0)
    assert authority.not_valid_after_utc - authority.not_valid_before_utc == LIFETIME <= timedelta(days=90)


def test_only_the_servers_key_is_written_and_only_for_its_owner(created):
    assert sorted(file.name for file in created.folder.iterdir()) == ["ca.crt", "server.pem"]
    assert b"PRIVATE KEY" not in created.authority.read_bytes()
    text = created.server.read_bytes()
    assert text.count(b"BEGIN PRIVATE KEY") == 1
    private = certificates.serialization.load_pem_private_key(text[text.index(b"-----BEGIN PRIVATE") :], None)
    assert private.public_key() == x509.load_pem_x509_certificate(text).public_key()
    if os.name == "posix":
        assert stat.S_IMODE(created.server.stat().st_mode) == 0o600
        assert stat.S_IMODE(created.folder.stat().st_mode) == 0o700


def test_new_certificates_are_a_new_ca(created, tmp_path):
    before = created.authority.read_bytes(), created.server.read_bytes()
    create_certificates(tmp_path / "tls", NOW)
    assert created.authority.read_bytes() != before[0]
    created.authority.write_bytes(before[0])
    with pytest.raises(ConfigError, match="of different CAs; run naiad tls install --renew"):
        created.read_end()


def test_the_end_is_announced_before_it_comes(created):
    end = created.read_end()
    assert created.check(NOW) is None
    assert created.check(end - RENEWAL - timedelta(days=1)) is None
    assert f"expires on {end:%Y-%m-%d}; run naiad tls install" in created.check(end - timedelta(days=1))
    with pytest.raises(ConfigError, match=f"expired on {end:%Y-%m-%d}; run naiad tls install"):
        created.check(end)


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_a_key_that_others_can_read_is_reported(created):
    created.server.chmod(0o640)
    assert "chmod 600" in created.check(NOW)


def test_missing_and_damaged_files_are_named(created, tmp_path):
    with pytest.raises(ConfigError, match="has no certificate; run naiad tls install"):
        Certificates(tmp_path / "nothing").read_end()
    created.authority.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(ConfigError, match="are damaged"):
        created.check(NOW)
    created.server.write_bytes(created.server.read_bytes().partition(b"-----BEGIN PRIVATE")[0])
    with pytest.raises(ConfigError, match="has no key"):
        created.build_context()
