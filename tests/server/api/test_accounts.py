"""Logging in, access keys, the account pages that clients read before they generate, and tokens.toml."""

import json
import re

import pytest
from fake_model import BASE_URL, FakeModel, build_state
from fastapi.testclient import TestClient

from server.api.access import AccessRules
from server.api.account_pages import ACCOUNT_PAGES
from server.api.accounts import Accounts, derive_access_key, load_accounts
from server.app import create_app
from server.config.catalog import single_model_catalog
from server.config.toml import ConfigError
from server.engine.model import detect_model

KEY, TOKEN = "dH77hGoqJBPjdNLL6X2IoEefDz7fMhkVSfNhOR2RQcCwOewFMfghP6ugV9B5fOs4", "pst-" + "a1" * 32
OTHER_KEY, OTHER_TOKEN = "o" * 64, "pst-" + "b2" * 32
SERVER_TOKEN = "pst-" + "c3" * 32
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


@pytest.fixture
def accounts(tmp_path):
    file = tmp_path / "tokens.toml"
    file.write_text(TOKENS_TOML)
    return load_accounts(file)


@pytest.fixture(scope="module")
def model(demo_file):
    return detect_model(single_model_catalog(demo_file))


@pytest.fixture
def build_client(model):
    """Return a client of a server that requires one of these tokens."""

    def build(*tokens, accounts=None):
        rules = AccessRules(tokens)
        state = build_state(model, FakeModel(), access=rules, accounts=accounts or Accounts())
        return TestClient(create_app(state), base_url=BASE_URL)

    return build


@pytest.fixture
def client(build_client, accounts):
    """Client of a server with a token of its own and two accounts."""
    return build_client(SERVER_TOKEN, *accounts.tokens, accounts=accounts)


LIMITS = [{"resolution": 4_194_304, "maxPrompts": 0}, {"resolution": 1_048_576, "maxPrompts": 1}]
PERKS = {
    "maxPriorityActions", "startPriority", "moduleTrainingSteps", "unlimitedMaxPriority", "voiceGeneration",
    "imageGeneration", "unlimitedImageGeneration", "unlimitedImageGenerationLimits", "contextTokens",
}  # fmt: skip
ALL_SIX = {
    "emailVerified", "emailVerificationLetterSent", "trialActivated", "trialActionsLeft", "trialImagesLeft",
    "accountCreatedAt",
}  # fmt: skip


@pytest.mark.parametrize(
    ("page", "keys"),
    [
        ("subscription", {"tier", "active", "expiresAt", "isGracePeriod", "perks", "paymentProcessorData",
                          "trainingStepsLeft", "accountType"}),
        ("information", ALL_SIX),
        ("priority", {"maxPriorityActions", "nextRefillAt", "taskPriority"}),
        ("keystore", {"keystore", "changeIndex"}),
        ("data", {"priority", "subscription", "keystore", "settings", "information"}),
    ],
)  # fmt: skip
def test_a_page_has_the_keys_that_clients_require(build_client, page, keys):
    response = build_client().get(f"/user/{page}")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    assert set(response.json()) == keys


def test_these_are_all_account_pages():
    assert set(ACCOUNT_PAGES) == {"subscription", "information", "priority", "keystore", "data"}


def test_the_subscription_allows_generating(build_client):
    subscription = build_client().get("/user/data").json()["subscription"]
    assert subscription == build_client().get("/user/subscription").json()
    assert subscription["active"] is True
    assert subscription["tier"] == 3
    assert subscription["expiresAt"] > 4e9
    assert set(subscription["perks"]) == PERKS
    assert subscription["perks"]["unlimitedImageGenerationLimits"] == LIMITS
    assert all(
        subscription["perks"][name] is True for name in ("unlimitedMaxPriority", "unlimitedImageGeneration")
    )
    assert set(subscription["trainingStepsLeft"]) == {"fixedTrainingStepsLeft", "purchasedTrainingSteps"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/user/nothing", 404),
        ("GET", "/user/../user/data", 200),
        ("GET", "/user/login", 405),
        ("GET", "/user/create-persistent-token", 405),
        ("POST", "/user/subscription", 405),
        ("DELETE", "/user/data", 405),
    ],
)
def test_other_paths_and_methods(build_client, method, path, status):
    response = build_client().request(method, path)
    assert response.status_code == status
    assert status == 200 or response.json()["statusCode"] == status


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


@pytest.mark.parametrize(("key", "token"), [(KEY, TOKEN), (OTHER_KEY, OTHER_TOKEN)])
def test_a_listed_key_gets_its_token_which_grants_access(client, key, token):
    response = log_in(client, key=key, recaptcha="x")
    assert (response.status_code, response.json()) == (201, {"accessToken": token})
    assert client.get("/user/data", headers={"Authorization": f"Bearer {token}"}).status_code == 200


@pytest.mark.parametrize(
    "key",
    ["", "x", KEY[:-1], KEY + "=", KEY.lower(), TOKEN, SERVER_TOKEN, f" {KEY}", "k\0", "é", "\ud800", "k" * 10_000],
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


@pytest.mark.parametrize("token", [SERVER_TOKEN, TOKEN, OTHER_TOKEN])
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
