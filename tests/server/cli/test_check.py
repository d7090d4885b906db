"""`naiad check` on the accounts file."""

import os

import pytest

from server.api.credentials import generate_token, hash_token
from server.cli.check import check_setup
from server.config.catalog import single_model_catalog
from server.config.settings import Settings
from server.config.toml import ConfigError

HASHED = f'[[account]]\nname = "a"\ntoken_hash = "{hash_token(generate_token())}"\n'
CLEAR = '[[account]]\nname = "b"\ntoken = "token-in-clear"\n'


@pytest.fixture
def check(demo_file, tmp_path):
    """Check a setup with an accounts file; return the line about it."""

    def check(text, mode=0o600):
        file = tmp_path / "tokens.toml"
        file.write_text(text)
        file.chmod(mode)
        lines = check_setup(single_model_catalog(demo_file), Settings(tokens=file))
        return next(line for line in lines if line.startswith("accounts: "))

    return check


def test_accounts_are_counted(check):
    assert check("") == "accounts: 0"
    assert check(HASHED, 0o644) == "accounts: 1"


def test_a_token_in_clear_is_mentioned(check):
    line = "accounts: 2, 1 with a token in clear (`naiad token add` keeps only a hash)"
    assert check(HASHED + CLEAR) == line


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_others_may_not_read_a_token_in_clear(check, mode):
    assert "; other users of this machine may read it: chmod 600 " in check(CLEAR, mode)


def test_an_error_in_the_file_is_found(check):
    with pytest.raises(ConfigError, match=r"tokens\.toml:4: .*limits"):
        check(HASHED + "limits = 3\n")


def test_a_probe_shows_that_the_network_predicts_what_was_detected(demo_file):
    lines = list(check_setup(single_model_catalog(demo_file), Settings(), probe=True))
    assert lines[-2].startswith("nai-diffusion-3: its network shows v, as detected (cosine ")


def test_a_probe_refuses_a_network_that_predicts_something_else(demo_file):
    catalog = single_model_catalog(demo_file, prediction="eps")
    with pytest.raises(ConfigError, match="the configuration sets eps, but its network shows v"):
        list(check_setup(catalog, Settings(), probe=True))
