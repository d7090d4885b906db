"""Logging in, the account pages that clients read before they draw, and tokens.toml."""

import json
import re

import pytest
from fastapi.testclient import TestClient
from painter import HERE, Painter, house

from server.api.access import AccessRules
from server.api.accounts import PAGES, Accounts, load_accounts
from server.app import create_app
from server.config.catalog import single_model_catalog
from server.config.toml import ConfigError
from server.engine.model import detect_model

KEY, TOKEN = "dH77hGoqJBPjdNLL6X2IoEefDz7fMhkVSfNhOR2RQcCwOewFMfghP6ugV9B5fOs4", "pst-" + "a1" * 32
OTHER_KEY, OTHER_TOKEN = "o" * 64, "pst-" + "b2" * 32
SERVERS = "pst-" + "c3" * 32
WRITTEN = f"""
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
    file.write_text(WRITTEN)
    return load_accounts(file)


@pytest.fixture(scope="module")
def served(demo_file):
    return detect_model(single_model_catalog(demo_file))


@pytest.fixture
def client_of(served):
    """A server's client, by the tokens it needs."""

    def made(*tokens, accounts=None):
        rules = AccessRules(tokens)
        return TestClient(
            create_app(house(served, Painter(), access=rules, accounts=accounts or Accounts())), base_url=HERE
        )

    return made


@pytest.fixture
def client(client_of, accounts):
    """Of a server with a token of its own and two accounts."""
    return client_of(SERVERS, *accounts.tokens, accounts=accounts)


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
def test_a_page_has_what_clients_fail_without(client_of, page, keys):
    answer = client_of().get(f"/user/{page}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert set(answer.json()) == keys


def test_there_is_no_page_that_was_not_looked_at():
    assert set(PAGES) == {"subscription", "information", "priority", "keystore", "data"}


def test_the_subscription_is_one_that_may_draw(client_of):
    found = client_of().get("/user/data").json()["subscription"]
    assert found == client_of().get("/user/subscription").json()
    assert found["active"] is True
    assert found["tier"] == 3
    assert found["expiresAt"] > 4e9
    assert set(found["perks"]) == PERKS
    assert found["perks"]["unlimitedImageGenerationLimits"] == LIMITS
    assert all(found["perks"][name] is True for name in ("unlimitedMaxPriority", "unlimitedImageGeneration"))
    assert set(found["trainingStepsLeft"]) == {"fixedTrainingStepsLeft", "purchasedTrainingSteps"}


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
def test_other_ways_of_asking(client_of, method, path, status):
    answer = client_of().request(method, path)
    assert answer.status_code == status
    assert status == 200 or answer.json()["statusCode"] == status


def logged_in(client, **body):
    return client.post("/user/login", json=body)


@pytest.mark.parametrize("key", [KEY, "x", ""])
def test_where_everybody_may_come_in_a_login_gives_a_dummy_of_the_right_form(client_of, key):
    first, second = (logged_in(client_of(), key=key) for _ in range(2))
    assert first.status_code == 201
    assert first.headers["content-type"] == "application/json; charset=utf-8"
    assert set(first.json()) == {"accessToken"}
    assert re.fullmatch(r"pst-[A-Za-z0-9]{64}", first.json()["accessToken"])
    assert first.json() != second.json()


def test_the_dummy_opens_nothing_once_a_token_is_needed(client_of, client):
    dummy = logged_in(client_of(), key=KEY).json()["accessToken"]
    made = client_of().post("/user/create-persistent-token", json={}).json()["token"]
    for token in (dummy, made):
        assert client.get("/user/data", headers={"Authorization": f"Bearer {token}"}).status_code == 401


@pytest.mark.parametrize(("key", "token"), [(KEY, TOKEN), (OTHER_KEY, OTHER_TOKEN)])
def test_a_listed_key_gets_its_token_which_opens(client, key, token):
    answer = logged_in(client, key=key, recaptcha="x")
    assert (answer.status_code, answer.json()) == (201, {"accessToken": token})
    assert client.get("/user/data", headers={"Authorization": f"Bearer {token}"}).status_code == 200


@pytest.mark.parametrize(
    "key",
    ["", "x", KEY[:-1], KEY + "=", KEY.lower(), TOKEN, SERVERS, f" {KEY}", "k\0", "é", "\ud800", "k" * 100_000],
)  # fmt: skip
def test_any_other_key_gets_nothing(client, client_of, key):
    body = json.dumps({"key": key})  # httpx does not send half a character
    for one in (client, client_of(SERVERS)):
        answer = one.post("/user/login", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 401
        assert answer.json() == {"statusCode": 401, "message": "Unauthorized"}


@pytest.mark.parametrize(
    "body", [{}, {"key": None}, {"key": 7}, {"key": [KEY]}, {"key": {"key": KEY}}, {"Key": KEY}]
)
def test_a_key_that_is_no_text_is_a_mistake(client, client_of, body):
    for one in (client, client_of()):
        answer = logged_in(one, **body)
        assert answer.status_code == 400
        assert answer.json()["message"].startswith("key: ")


@pytest.mark.parametrize(("content", "status"), [(b"", 400), (b"{", 400), (b"[]", 400), (b"key=x", 400)])
def test_a_login_that_is_no_object_is_refused(client, content, status):
    answer = client.post("/user/login", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert (
        client.post("/user/login", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    )


@pytest.mark.parametrize("token", [SERVERS, TOKEN, OTHER_TOKEN])
def test_a_persistent_token_is_the_one_that_came_in(client, token):
    answer = client.post(
        "/user/create-persistent-token", json={}, headers={"Authorization": f"Bearer {token}"}
    )
    assert (answer.status_code, answer.json()) == (201, {"token": token})


@pytest.mark.parametrize("authorization", [None, "Bearer x", f"Basic {TOKEN}"])
def test_without_a_token_there_is_no_persistent_one(client, authorization):
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = client.post("/user/create-persistent-token", json={"overwrite": True}, headers=headers)
    assert answer.status_code == 401


def test_a_file_may_list_nobody(tmp_path):
    file = tmp_path / "tokens.toml"
    file.write_text("# nobody yet\n")
    assert load_accounts(file) == Accounts()


@pytest.mark.parametrize(
    ("written", "line", "fragment"),
    [
        (WRITTEN.replace('name = "a"', 'nmae = "a"'), 3, "did you mean 'account.0.name'"),
        (WRITTEN + "open = true\n", 11, "'account.1.open' is not a key here"),
        ("owner = 1\n" + WRITTEN, 1, "'owner' is not a key here"),
        (WRITTEN.replace(f'"{OTHER_TOKEN}"', "7"), 10, "account.1.token"),
        (WRITTEN.replace(f'"{OTHER_KEY}"', '"short"'), 9, "account.1.key"),
        (WRITTEN.replace(f'"{OTHER_KEY}"', '"with a space in it"'), 9, "account.1.key"),
        (WRITTEN.replace('name = "b"\n', ""), 7, "account.1.name is required"),
        ("account = 3\n", 1, "account"),
        ("[account]\nname = 'a'\n", 1, "account"),
        (WRITTEN + 'name = "c\n', 11, ""),
    ],
)
def test_what_is_wrong_in_the_file_is_told_with_its_line_and_no_secret(tmp_path, written, line, fragment):
    file = tmp_path / "tokens.toml"
    file.write_text(written)
    with pytest.raises(ConfigError) as caught:
        load_accounts(file)
    told = str(caught.value)
    assert told.startswith(f"{file}:{line}: ")
    assert fragment in told
    assert not [
        secret for secret in (KEY, TOKEN, OTHER_KEY, OTHER_TOKEN, "short", "with a") if secret in told
    ]


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_accounts(tmp_path / "tokens.toml")
