"""tokens.toml: its form, logging in with it, and that it is read again when it changes."""

import json
import logging
import os
import re

import pytest
from fake_model import BASE_URL, FakeModel, build_state
from fastapi.testclient import TestClient

from server.api import accounts as accounts_module
from server.api.access import AccessRules
from server.api.accounts import Accounts, AccountsFile, load_accounts
from server.api.credentials import derive_access_key, derive_login_token, generate_token, hash_token
from server.app import create_app
from server.config.toml import ConfigError

KEY, TOKEN = "dH77hGoqJBPjdNLL6X2IoEefDz7fMhkVSfNhOR2RQcCwOewFMfghP6ugV9B5fOs4", "pst-" + "a1" * 32
OTHER_KEY, OTHER_TOKEN = "o" * 64, "pst-" + "b2" * 32
SERVER_TOKEN = "pst-" + "c3" * 32
HASHED_KEY = derive_access_key("c@d.e", "correct horse")
HASHED_TOKEN = derive_login_token(HASHED_KEY)
TOKENS_TOML = f"""
[[account]]
name = "a"
key = "{KEY}"
token = "{TOKEN}"

[[account]]
name = "b"
key = "{OTHER_KEY}"
token = "{OTHER_TOKEN}"
"""
HASHED = f"""
[[account]]
name = "c"
token_hash = ["{hash_token(generate_token())}", "{hash_token(HASHED_TOKEN)}"]
limit = 5
"""


@pytest.fixture
def accounts(tmp_path):
    file = tmp_path / "tokens.toml"
    file.write_text(TOKENS_TOML + HASHED)
    return load_accounts(file)


@pytest.fixture
def build_client(model):
    """Return a client of a server that requires one of these tokens."""

    def build(*tokens, accounts=None):
        rules = AccessRules(tokens, read_accounts=None if accounts is None else lambda: accounts)
        state = build_state(model, FakeModel(), access=rules)
        return TestClient(create_app(state), base_url=BASE_URL)

    return build


@pytest.fixture
def client(build_client, accounts):
    """Client of a server with a token of its own and two accounts."""
    return build_client(SERVER_TOKEN, accounts=accounts)


def log_in(client, **body):
    return client.post("/user/login", json=body)


@pytest.mark.parametrize("key", [KEY, "x", ""])
def test_without_required_tokens_a_login_returns_a_random_token(build_client, key):
    first, second = (log_in(build_client(), key=key) for _ in range(2))
    assert first.status_code == 201
    assert first.headers["content-type"] == "application/json; charset=utf-8"
    assert set(first.json()) == {"accessToken"}
    assert re.fullmatch(r"pst-[A-Za-z0-9]{64}", first.json()["accessToken"])
    assert first.json() != second.json()


def test_a_random_token_grants_nothing_where_tokens_are_required(build_client, client):
    random = log_in(build_client(), key=KEY).json()["accessToken"]
    persistent = build_client().post("/user/create-persistent-token", json={}).json()["token"]
    for token in (random, persistent):
        assert client.get("/user/data", headers={"Authorization": f"Bearer {token}"}).status_code == 401


@pytest.mark.parametrize(
    ("key", "token"), [(KEY, TOKEN), (OTHER_KEY, OTHER_TOKEN), (HASHED_KEY, HASHED_TOKEN)]
)
def test_a_listed_key_gets_its_token_which_grants_access(client, key, token):
    response = log_in(client, key=key, recaptcha="x")
    assert (response.status_code, response.json()) == (201, {"accessToken": token})
    assert client.get("/user/data", headers={"Authorization": f"Bearer {token}"}).status_code == 200


@pytest.mark.parametrize(
    "key",
    ["", "x", KEY[:-1], KEY + "=", KEY.lower(), TOKEN, SERVER_TOKEN, HASHED_TOKEN, hash_token(HASHED_TOKEN), f" {KEY}", "k\0", "é", "\ud800", "k" * 10_000],
)  # fmt: skip
def test_an_unknown_key_is_unauthorized(client, build_client, key):
    body = json.dumps({"key": key})  # httpx refuses to send a lone surrogate
    for each in (client, build_client(SERVER_TOKEN)):
        response = each.post("/user/login", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 401
        assert response.json() == {"statusCode": 401, "message": "Unauthorized"}


@pytest.mark.parametrize(
    "body", [{}, {"key": None}, {"key": 7}, {"key": [KEY]}, {"key": {"key": KEY}}, {"Key": KEY}]
)
def test_a_key_that_is_not_a_text_is_rejected(client, build_client, body):
    for each in (client, build_client()):
        response = log_in(each, **body)
        assert response.status_code == 400
        assert response.json()["message"].startswith("key: ")


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"", 400), (b"{", 400), (b"[]", 400), (b"key=x", 400), (b'{"key": "%s"}' % (b"k" * 20_000), 413)],
)
def test_a_login_body_that_is_not_an_object_is_rejected(client, content, status):
    response = client.post("/user/login", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == status
    assert (
        client.post("/user/login", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    )


@pytest.mark.parametrize("token", [SERVER_TOKEN, TOKEN, OTHER_TOKEN, HASHED_TOKEN])
def test_the_persistent_token_is_the_one_that_was_sent(client, token):
    response = client.post(
        "/user/create-persistent-token", json={}, headers={"Authorization": f"Bearer {token}"}
    )
    assert (response.status_code, response.json()) == (201, {"token": token})


@pytest.mark.parametrize("authorization", [None, "Bearer x", f"Basic {TOKEN}"])
def test_creating_a_persistent_token_needs_a_token(client, authorization):
    headers = {} if authorization is None else {"Authorization": authorization}
    response = client.post("/user/create-persistent-token", json={"overwrite": True}, headers=headers)
    assert response.status_code == 401


def test_a_file_without_accounts_is_valid(tmp_path):
    file = tmp_path / "tokens.toml"
    file.write_text("# no accounts yet\n")
    assert load_accounts(file) == Accounts()


@pytest.mark.parametrize(
    ("text", "line", "fragment"),
    [
        (TOKENS_TOML.replace('name = "a"', 'nmae = "a"'), 3, "did you mean 'account.0.name'"),
        (TOKENS_TOML + "open = true\n", 11, "'account.1.open' is not a key here"),
        ("owner = 1\n" + TOKENS_TOML, 1, "'owner' is not a key here"),
        (TOKENS_TOML.replace(f'"{OTHER_TOKEN}"', "7"), 10, "account.1.token"),
        (TOKENS_TOML.replace(f'"{OTHER_KEY}"', '"short"'), 9, "account.1.key"),
        (TOKENS_TOML.replace(f'"{OTHER_KEY}"', '"with a space in it"'), 9, "account.1.key"),
        (TOKENS_TOML.replace('name = "b"\n', ""), 7, "account.1.name is required"),
        ("account = 3\n", 1, "account"),
        ("[account]\nname = 'a'\n", 1, "account"),
        (TOKENS_TOML + 'name = "c\n', 11, ""),
        (
            f'[[account]]\nname = "c"\ntoken_hash = "{TOKEN}"\n',
            3,
            "should be sha256: and 64 hexadecimal digits",
        ),
        (
            f'[[account]]\nname = "c"\ntoken_hash = ["{hash_token(TOKEN).upper()}"]\n',
            3,
            "64 hexadecimal digits",
        ),
        ('[[account]]\nname = "c"\n', 1, "account.0: needs a token_hash"),
        ('[[account]]\nname = "c"\ntoken_hash = []\n', 1, "account.0: needs a token_hash"),
        (HASHED + f'key = "{KEY}"\n', 2, "account.0: key needs a token"),
        (HASHED.replace("limit = 5", "limit = 0"), 5, "account.0.limit = 0"),
        (HASHED.replace("limit = 5", "limit = true"), 5, "account.0.limit = true"),
        (HASHED.replace("limit = 5", "concurrency = 0"), 5, "account.0.concurrency = 0"),
        (HASHED.replace("limit = 5", "priority = 101"), 5, "account.0.priority = 101"),
    ],
)
def test_an_error_in_the_file_is_reported_with_its_line_and_without_secrets(tmp_path, text, line, fragment):
    file = tmp_path / "tokens.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_accounts(file)
    message = str(caught.value)
    assert message.startswith(f"{file}:{line}: ")
    assert fragment in message
    assert not [
        secret for secret in (KEY, TOKEN, OTHER_KEY, OTHER_TOKEN, "short", "with a") if secret in message
    ]


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_accounts(tmp_path / "tokens.toml")


def test_an_access_key_is_the_one_that_three_clients_send():
    assert derive_access_key("a@b.c", "password") == KEY


@pytest.mark.parametrize(
    ("email", "password"), [("A@b.c", "password"), ("a@b.c", "Password"), ("a@b.c", "passwort")]
)
def test_an_access_key_depends_on_every_character(email, password):
    assert derive_access_key(email, password) != derive_access_key("a@b.c", "password")


def test_an_access_key_can_be_derived_from_a_short_password_and_other_scripts():
    key = derive_access_key("名@例え.jp", "短い")
    assert len(key) == 64
    assert key.isascii()


def test_guessing_is_slowed_down(client, caplog):
    guesses = [log_in(client, key=f"{number:064}").status_code for number in range(12)]
    assert guesses == [401] * 10 + [429] * 2
    assert log_in(client, key=KEY).status_code == 429
    assert client.get("/user/data", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert caplog.messages.count("a login from testclient has failed") == 10


def test_a_login_token_has_the_form_that_clients_check_and_does_not_show_its_key():
    assert re.fullmatch(r"pst-[A-Za-z0-9]{64}", HASHED_TOKEN)
    assert derive_login_token(HASHED_KEY) == HASHED_TOKEN
    assert derive_login_token(derive_login_token(HASHED_KEY)) != HASHED_TOKEN
    assert HASHED_KEY[:8] not in HASHED_TOKEN


def test_a_file_with_hashes_holds_neither_key_nor_token(accounts):
    listed = accounts.find(HASHED_TOKEN)
    assert (listed.name, listed.limit) == ("c", 5)
    assert not [secret for secret in (HASHED_KEY, HASHED_TOKEN) if secret in repr(listed)]


def test_every_hash_is_compared_in_constant_time(accounts, monkeypatch):
    compared = []
    monkeypatch.setattr(accounts_module, "compare_digest", lambda a, b: (compared.append(b), a == b)[1])
    assert accounts.find(TOKEN).name == "a"
    assert compared == [known for account in accounts.account for known in account.hashes]
    assert len(compared) == 4


class Clock:
    """A clock that a test moves."""

    seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "tokens.toml"
    file.write_text(HASHED)
    return file


def count_accounts(accounts_file, clock, seconds):
    clock.seconds += seconds
    return len(accounts_file.read().account)


def test_a_file_is_read_again_when_it_has_changed_and_only_looked_at_now_and_then(file, monkeypatch):
    clock = Clock()
    accounts_file = AccountsFile(file, clock)
    looks = []
    monkeypatch.setattr(
        accounts_module, "_read_state", lambda path: looks.append(path) or path.stat().st_size
    )
    accounts_file._state = file.stat().st_size
    file.write_text(HASHED + TOKENS_TOML)
    assert count_accounts(accounts_file, clock, 1.9) == 1
    assert looks == []
    assert count_accounts(accounts_file, clock, 0.2) == 3
    assert count_accounts(accounts_file, clock, 0.0) == 3
    assert len(looks) == 1


def test_a_file_that_is_replaced_by_one_of_the_same_size_is_read_again(file):
    clock = Clock()
    accounts_file = AccountsFile(file, clock)
    other = generate_token()
    new = file.with_name("new")
    new.write_text(HASHED.replace(hash_token(HASHED_TOKEN), hash_token(other)))
    stat = file.stat()
    os.utime(new, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    new.replace(file)
    assert accounts_file.read().find(HASHED_TOKEN) is not None
    clock.seconds = 3
    assert accounts_file.read().find(HASHED_TOKEN) is None
    assert accounts_file.read().find(other) is not None


@pytest.mark.parametrize("broken", [HASHED + "[[account", HASHED + "limits = 3", None])
def test_a_broken_file_changes_nothing_and_is_reported_once(file, caplog, broken):
    clock = Clock()
    accounts_file = AccountsFile(file, clock)
    if broken is None:
        file.unlink()
    else:
        file.write_text(broken)
    assert [count_accounts(accounts_file, clock, 3) for _ in range(3)] == [1, 1, 1]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith(f"the accounts stay as they were: {file}:")
    file.write_text(HASHED + TOKENS_TOML)
    assert count_accounts(accounts_file, clock, 3) == 3


def test_a_revoked_token_is_refused_by_a_server_that_runs(model, file):
    clock = Clock()
    rules = AccessRules(read_accounts=AccountsFile(file, clock).read)
    client = TestClient(create_app(build_state(model, FakeModel(), access=rules)), base_url=BASE_URL)
    headers = {"Authorization": f"Bearer {HASHED_TOKEN}"}
    assert client.get("/user/data", headers=headers).status_code == 200
    file.write_text("")
    clock.seconds = 3
    assert client.get("/user/data", headers=headers).status_code == 401
    assert log_in(client, key=HASHED_KEY).status_code == 401
    assert client.get("/user/data").status_code == 401
