"""From settings to the objects of a server."""

from dataclasses import replace
from socket import gethostname

import pytest
from jobs import make_job

from server.api.credentials import generate_token, hash_token
from server.cli.bootstrap import build_access_rules, build_app_state, build_archive, build_metadata_policy
from server.config.settings import ApiSettings, EngineSettings, Settings, SpeedSettings
from server.config.toml import ConfigError
from server.engine.engine import State
from server.metrics.metrics import Metrics


def test_loopback_needs_no_token_and_other_addresses_get_one():
    rules = build_access_rules(Settings())
    assert (rules.tokens, rules.has_tokens) == ((), False)
    (token,) = build_access_rules(Settings(host=("0.0.0.0",))).tokens
    assert token.startswith("pst-")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_tokens_of_settings_and_accounts_are_accepted_and_no_other(tmp_path, host):
    file, token = tmp_path / "tokens.toml", generate_token()
    file.write_text(f'[[account]]\nname = "a"\ntoken_hash = "{hash_token(token)}"\n')
    rules = build_access_rules(Settings(host=(host,), token="settings-token", tokens=file))
    assert rules.allows_token("Bearer settings-token")
    assert rules.allows_token(f"Bearer {token}")
    assert not rules.allows_token(f"Bearer {generate_token()}")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_file_without_accounts_lets_no_one_in(tmp_path, host):
    file = tmp_path / "tokens.toml"
    file.write_text("")
    rules = build_access_rules(Settings(host=(host,), tokens=file))
    assert rules.tokens == ()
    assert not [sent for sent in ("", "Bearer", "Bearer ", "Bearer x") if rules.allows_token(sent)]


@pytest.mark.parametrize(("host", "names"), [("127.0.0.1", ("a.b",)), ("::", ("a.b", gethostname().lower()))])
def test_the_machines_name_is_a_host_where_all_addresses_are_bound(host, names):
    assert build_access_rules(Settings(host=(host,), api=ApiSettings(hosts=("a.b",)))).hosts == names


def test_only_full_metadata_creates_a_signing_key(model, tmp_path):
    file = tmp_path / "signing.pem"
    assert build_metadata_policy(model, Settings(metadata="plain", signing_key=file)).key is None
    assert not file.exists()
    assert build_metadata_policy(model, Settings(signing_key=file)).key is not None
    assert file.exists()


@pytest.mark.parametrize(
    "lossy", [{}, {"weights": "int8"}, {"step_cache": 3}, {"decoder": "tiny", "weights": "float8"}]
)
def test_only_lossy_settings_are_recorded(model, lossy):
    speed = SpeedSettings.model_validate({"graphs": "off", "memory": 8} | lossy)
    policy = build_metadata_policy(model, Settings(metadata="plain", speed=speed))
    for of_model in (policy, policy.for_model(model)):
        described = of_model.describe_job(make_job(), (1.0, 0.0))
        assert described.get("speed", {}) == lossy
        assert ("speed" in described) is bool(lossy)


@pytest.mark.parametrize("decoder", ["vae", "tiny"])
def test_a_preview_decoder_is_recorded_where_it_decodes_pictures(model, decoder):
    files = {"preview_decoder": "ABCDEF01"}
    settings = Settings(metadata="plain", speed=SpeedSettings(decoder=decoder))
    policy = build_metadata_policy(replace(model, decoder_files=files), settings)
    assert policy.describe_job(make_job(), ())["files"] == (files if decoder == "tiny" else {})


def test_settings_reach_the_application_state(model, tmp_path):
    (tmp_path / "tokens.toml").write_text('[[account]]\nname = "a"\nkey = "kkkkkkkk"\ntoken = "tttttttt"\n')
    settings = Settings(
        tokens=tmp_path / "tokens.toml",
        signing_key=tmp_path / "signing.pem",
        engine=EngineSettings(queue_limit=3, batching="shared", deadline=9, on_disconnect="finish"),
        api=ApiSettings(presets="client", unknown_models="refuse", body_limit=7, prefix=("/native",)),
    )
    state = build_app_state(model, settings)
    assert (state.engine.state, state.body_limit, state.prefixes) == (State.NEW, 7, ("/native",))
    assert (state.deadline, state.on_disconnect) == (9, "finish")
    assert (state.policy.mode, state.policy.unknown_models) == ("client", "refuse")
    assert (state.metadata.batching, state.metadata.source_hash) == ("shared", model.fingerprint)
    assert [account.name for account in state.access.accounts.account] == ["a"]


def test_pages_without_an_origin_need_a_token(tmp_path):
    settings = Settings(api=ApiSettings(origins=("null",)))
    with pytest.raises(ConfigError, match="set a token too"):
        build_access_rules(settings)
    assert build_access_rules(settings.model_copy(update={"token": "settings-token"})).origins == ("null",)
    file = tmp_path / "tokens.toml"
    file.write_text("")
    assert build_access_rules(settings.model_copy(update={"tokens": file})).origins == ("null",)


def test_pictures_that_are_not_kept_are_counted(tmp_path):
    metrics = Metrics()
    archive = build_archive(Settings(archive=tmp_path / "archive"), metrics)
    assert archive is not None
    archive.start()
    (tmp_path / "archive").rename(tmp_path / "elsewhere")
    archive.put(b"a picture", "5f0c9a3be1d24477", 0, 7, None)
    archive.stop()
    assert metrics.registry.get_sample_value("naiad_archive_failures_total") == 1
    assert build_archive(Settings(), metrics) is None
