"""What installing changes, prints and undoes, in a folder instead of the machine."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from server.config.toml import ConfigError
from server.tls import installation, trust_store
from server.tls.certificates import Certificates
from server.tls.hosts_file import add_entries, has_entries, remove_entries
from server.tls.installation import Installation, describe, install, uninstall

NOW = datetime.now(UTC)
HOSTS = [b"127.0.0.1 localhost\n", b"", b"127.0.0.1 localhost", b"1.2.3.4 a\r\n\r\n# \xff\r\n"]


@pytest.fixture
def place(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "hosts").write_bytes(HOSTS[0])
    return Installation(Certificates(tmp_path / "tls"), tmp_path / "store", tmp_path / "hosts", "Linux")


def run(place, now=NOW, trust=False, hosts=False, renew=False):
    return "\n".join(install(place, now, trust=trust, hosts=hosts, renew=renew))


def snapshot(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("content", HOSTS)
def test_hosts_entries_come_first_and_are_removed_to_the_byte(tmp_path, content):
    file = tmp_path / "hosts"
    file.write_bytes(content)
    assert not has_entries(file)
    add_entries(file)
    once = file.read_bytes()
    add_entries(file)
    assert file.read_bytes() == once
    assert once.endswith(content)
    lines = once.decode("latin-1").splitlines()
    assert "127.0.0.1 image.novelai.net api.novelai.net" in lines[:3]
    assert has_entries(file)
    remove_entries(file)
    assert file.read_bytes() == content


def test_without_options_only_the_folder_is_written_and_the_rest_is_printed(place, tmp_path):
    before = snapshot(tmp_path)
    printed = run(place)
    assert {
        file: content for file, content in snapshot(tmp_path).items() if file.parent != tmp_path / "tls"
    } == before
    assert (
        f"sudo cp '{place.certificates.authority}' /usr/local/share/ca-certificates/naiad-novelai.crt"
        in printed
    )
    assert f"add these lines to {place.hosts_file}:" in printed
    assert "127.0.0.1 image.novelai.net api.novelai.net" in printed
    assert "NODE_EXTRA_CA_CERTS" in printed
    assert "PRIVATE" not in printed


def test_everything_that_is_installed_is_printed_described_and_undone(place, tmp_path):
    before = snapshot(tmp_path)
    printed = run(place, trust=True, hosts=True)
    for file in (place.certificates.authority, place.certificates.server, place.hosts_file):
        assert str(file) in printed
    assert f"wrote {place.trust_store / 'naiad-novelai.crt'}" in printed
    described = "\n".join(describe(place, NOW))
    assert "trust: this machine trusts the CA" in described
    assert "hosts: NAI's names lead to this machine" in described
    undone = "\n".join(uninstall(place))
    assert undone.count("removed ") == 4
    assert snapshot(tmp_path) == before
    assert not place.certificates.folder.exists()
    assert list(uninstall(place)) == []
    described = "\n".join(describe(place, NOW))
    assert "has no certificate" in described
    assert "lead to NovelAI" in described


def test_valid_certificates_are_kept_until_a_month_before_their_end(place):
    run(place)
    first = place.certificates.authority.read_bytes()
    run(place, NOW + timedelta(days=50))
    assert place.certificates.authority.read_bytes() == first
    run(place, NOW + timedelta(days=70))
    second = place.certificates.authority.read_bytes()
    run(place, NOW + timedelta(days=70), renew=True)
    assert len({first, second, place.certificates.authority.read_bytes()}) == 3


def test_an_earlier_ca_in_the_trust_store_is_noticed_and_replaced(place):
    run(place, trust=True)
    run(place, renew=True)
    assert "is another CA; run naiad tls install --trust" in "\n".join(describe(place, NOW))
    run(place, trust=True)
    assert place.is_trusted


@pytest.mark.parametrize(
    ("system", "trusted", "removed"),
    [("Darwin", "security add-trusted-cert", "security delete-certificate"), ("Windows", "certutil -addstore", "certutil -delstore")],
)  # fmt: skip
def test_other_systems_get_their_commands_and_are_not_changed(place, system, trusted, removed):
    other = replace(place, trust_store=place.trust_store / "missing", system=system)
    assert trusted in run(other)
    with pytest.raises(ConfigError, match=trusted):
        run(other, trust=True)
    assert "not known" in "\n".join(describe(other, NOW))
    assert removed in "\n".join(uninstall(other))


def test_what_needs_root_is_refused_before_anything_is_written(place, tmp_path, monkeypatch):
    monkeypatch.setattr(installation.os, "access", lambda path, _: path != place.hosts_file)
    before = snapshot(tmp_path)
    with pytest.raises(ConfigError, match=r"hosts needs root .* sudo"):
        run(place, trust=True, hosts=True)
    assert snapshot(tmp_path) == before


def test_what_cannot_be_undone_is_printed_after_the_rest_is(place, monkeypatch):
    def refuse(_file):
        raise PermissionError

    run(place, trust=True, hosts=True)
    monkeypatch.setattr(installation, "remove_entries", refuse)
    with pytest.raises(ConfigError, match=r"root is needed for the rest; run sudo sed -i .*hosts"):
        list(uninstall(place))
    assert not place.certificates.folder.exists()
    assert list(place.trust_store.iterdir()) == []


def test_debians_store_is_updated_after_a_change(place, monkeypatch):
    calls = []

    def record(command, **_):
        calls.append([str(part) for part in command])
        return type("Done", (), {"returncode": len(calls) == 3})

    monkeypatch.setattr(trust_store, "DEBIAN_STORE", place.trust_store)
    monkeypatch.setattr(trust_store, "UPDATE_COMMAND", place.hosts_file)
    monkeypatch.setattr(trust_store.subprocess, "run", record)
    run(place, trust=True)
    list(uninstall(place))
    command = str(place.hosts_file)
    assert calls == [[command], [command, "--fresh"]]
    with pytest.raises(ConfigError, match="run it by hand"):
        run(place, trust=True)
