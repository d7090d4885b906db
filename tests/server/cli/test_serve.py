"""What a server prints at the start, and that it stops if its engine fails."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from fake_model import FakeModel

from pipelines.errors import UnusableSetting, WeightsError
from server.api.credentials import hash_token
from server.cli.bootstrap import build_access_rules
from server.cli.serve import _open_certificate, run_server, stop_after_failure
from server.cli.serve import announce as announce_server
from server.config.settings import Settings
from server.config.toml import ConfigError, DeviceUnavailable
from server.engine.engine import Engine
from server.tls.certificates import create_certificates


def announce(model, capsys, **changes):
    """Return what is printed, and the server's own tokens."""
    settings = Settings(**changes)
    rules = build_access_rules(settings)
    state: Any = SimpleNamespace(access=rules, metadata=SimpleNamespace(key=None))
    announce_server(model, state, settings, 4242)
    return capsys.readouterr().out, rules.tokens


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("changes", [{}, {"host": ("0.0.0.0",)}, {"token": "settings-token"}])
def test_a_token_of_ones_own_is_never_printed(model, capsys, tmp_path, listed, changes):
    file, secret = tmp_path / "tokens.toml", "account-token"
    file.write_text(f'[[account]]\nname = "a"\ntoken_hash = "{hash_token(secret)}"\n' if listed else "")
    printed, tokens = announce(model, capsys, tokens=file, **changes)
    assert 'Authorization: Bearer $NAIAD_TOKEN"' in printed
    assert tokens == (() if "token" not in changes else ("settings-token",))
    assert not [token for token in (*tokens, secret, hash_token(secret)) if token in printed]
    assert (f"{file} lists no account yet; `naiad token add NAME` makes one" in printed) is not listed


def test_a_generated_token_is_printed_once(model, capsys):
    printed, (token,) = announce(model, capsys, host=("0.0.0.0",))
    assert printed.count(token) == 1
    assert 'Bearer $NAIAD_TOKEN"' in printed


def test_an_archive_is_printed(model, capsys, tmp_path):
    assert f"every picture is kept in {tmp_path}\n" in announce(model, capsys, archive=tmp_path)[0]
    assert "is kept" not in announce(model, capsys)[0]


def test_each_address_is_printed(model, capsys):
    printed, tokens = announce(model, capsys, host=("127.0.0.1", "::1"))
    assert "listens on http://127.0.0.1:4242 and http://[::1]:4242\n" in printed
    assert tokens == ()
    assert "Authorization" not in printed


def test_over_tls_the_command_names_the_certificates_host(model, capsys, tmp_path):
    printed, _ = announce(model, capsys, tls=True, tls_folder=tmp_path)
    assert "listens on https://127.0.0.1:4242\n" in printed
    command = f"curl --cacert '{tmp_path / 'ca.crt'}' --resolve image.novelai.net:4242:127.0.0.1 https://image.novelai.net:4242/ai"
    assert command in printed


def test_without_a_certificate_nothing_is_served(model, tmp_path):
    settings = Settings(tls=True, tls_folder=tmp_path, signing_key=tmp_path / "signing.pem")
    with pytest.raises(ConfigError, match="has no certificate; run naiad tls install"):
        run_server(model, settings)


@pytest.mark.parametrize(("days", "lines"), [(0, 0), (80, 1)])
def test_a_certificate_that_expires_soon_is_logged(tmp_path, caplog, days, lines):
    create_certificates(tmp_path, datetime.now(UTC) - timedelta(days=days))
    _open_certificate(Settings(tls_folder=tmp_path))
    assert caplog.text.count("run naiad tls install, and trust the new CA") == lines


def fail_with(error):
    def load():
        raise error

    return load


@pytest.mark.parametrize(
    ("load", "status"),
    [
        (fail_with(ValueError("no such device")), 3),
        (fail_with(WeightsError("a.safetensors", "truncated")), 3),
        (fail_with(ConfigError("speed.graphs")), 2),
        (fail_with(DeviceUnavailable("device = 'cuda:9' is not available")), 3),
        (fail_with(UnusableSetting('speed.graphs = "on": not here')), 2),
        (FakeModel, 0),
    ],
)
def test_a_server_stops_with_a_status_if_its_engine_fails_and_not_if_it_is_stopped(load, status):
    engine = Engine(load)
    engine.start()
    if not status:
        engine.wait_ready()
        engine.stop()
    server: Any = SimpleNamespace(started=True, should_exit=False, exit_status=0)
    stop_after_failure(server, engine)
    assert server.should_exit is bool(status)
    assert server.exit_status == status
