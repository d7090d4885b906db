"""`naiad token`: what it prints, and that a server accepts the tokens it prints."""

import pytest
from typer.testing import CliRunner

from server.api.accounts import load_accounts
from server.api.credentials import derive_access_key, derive_login_token
from server.cli.tokens import app
from server.config.toml import ConfigError


@pytest.fixture
def file(tmp_path, monkeypatch):
    """The accounts file that NAIAD_TOKENS names."""
    file = tmp_path / "tokens.toml"
    monkeypatch.setenv("NAIAD_TOKENS", str(file))
    return file


def naiad_token(*arguments, stdin=None):
    """Run `naiad token`; an error is raised as it reaches `main`."""
    done = CliRunner().invoke(app, [*map(str, arguments)], input=stdin)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_add_prints_a_token_once_and_keeps_its_hash(file):
    done = naiad_token("add", "anna", "--limit", 20, "--concurrency", 1, "--priority", -3)
    token = done.stdout.strip()
    assert done.stdout == f"{token}\n"
    assert done.stderr == f"{file}: added anna; its token, which is not shown again:\n"
    assert token not in file.read_text()
    account = load_accounts(file).find(token)
    assert account is not None
    assert (account.name, account.limit, account.concurrency, account.priority) == ("anna", 20, 1, -3)


@pytest.mark.parametrize(("address", "count"), [("a@b.c", 1), ("A@b.c", 2)])
def test_add_with_a_login_keeps_neither_address_nor_password(file, address, count):
    done = naiad_token("add", "me", "--login", stdin=f"{address}\npassword\npassword\n")
    accounts, text = load_accounts(file), file.read_text()
    assert len(accounts.account[0].token_hash) == count
    for sent in {address, address.lower()}:
        key = derive_access_key(sent, "password")
        assert accounts.find_login_token(key) == derive_login_token(key)
        assert not [secret for secret in (key, derive_login_token(key), sent, "password") if secret in text]
    assert done.stdout.split()[-1] == derive_login_token(derive_access_key(address, "password"))
    assert accounts.find_login_token(derive_access_key(address, "passwort")) is None


def test_a_password_that_is_easy_to_guess_is_refused(file):
    with pytest.raises(ConfigError, match="Password: at least 8 characters"):
        naiad_token("add", "me", "--login", stdin="a@b.c\npasswor\npasswor\n")
    assert not file.exists()


@pytest.mark.parametrize("name", ["", " ", " a", "a\n", "a\tb", "a\x7f", "a" * 65])
def test_a_name_that_the_log_could_not_show_is_refused(file, name):
    with pytest.raises(ConfigError, match="1 to 64 printable characters"):
        naiad_token("add", name)
    assert not file.exists()


@pytest.mark.parametrize(
    "option",
    ["--limit=0", "--limit=-1", "--limit=1000001", "--concurrency=0", "--priority=101", "--priority=x"],
)
def test_a_limit_out_of_range_is_refused(file, option):
    assert naiad_token("add", "a", option).exit_code == 2
    assert not file.exists()


def test_a_folder_that_cannot_be_written_is_reported_by_the_file_s_own_name(tmp_path):
    file = tmp_path / "none" / "tokens.toml"
    with pytest.raises(ConfigError) as refused:
        naiad_token("add", "anna", "--tokens", file)
    assert str(refused.value).startswith(f"{file}: its folder cannot be written (")


def test_list_shows_limits_and_no_token(file):
    token = naiad_token("add", "anna", "--limit", 20).stdout.strip()
    file.write_text(file.read_text() + '[[account]]\nname = "ben"\ntoken = "token-in-clear"\n')
    lines = naiad_token("list").stdout.splitlines()
    assert lines[0].split() == ["NAME", "LIMIT", "CONCURRENCY", "PRIORITY", "TOKEN"]
    assert lines[1].split()[:4] == ["anna", "20", "-", "0"]
    assert lines[2].split() == ["ben", "-", "-", "0", "in", "clear"]
    assert not [line for line in lines if token in line or "token-in-clear" in line]


def test_a_revoked_account_is_gone(file):
    kept, revoked = (naiad_token("add", name).stdout.strip() for name in ("anna", "ben"))
    assert naiad_token("revoke", "ben").stderr == f"{file}: revoked ben\n"
    assert load_accounts(file).find(revoked) is None
    assert load_accounts(file).find(kept) is not None


def test_an_option_names_the_file_before_the_settings_do(file, tmp_path):
    other = tmp_path / "other.toml"
    naiad_token("add", "anna", "--tokens", other)
    assert (file.exists(), len(load_accounts(other).account)) == (False, 1)


def test_without_a_file_the_setting_is_named(monkeypatch):
    monkeypatch.delenv("NAIAD_TOKENS", raising=False)
    with pytest.raises(ConfigError, match="give --tokens FILE, or set tokens or NAIAD_TOKENS"):
        naiad_token("list")
