"""The pages about the account that clients read before they generate."""

from datetime import UTC, datetime

import pytest
from fake_model import BASE_URL, GENERATE, FakeModel, build_state, start_client
from fastapi.testclient import TestClient

from server.api.access import AccessRules
from server.api.account_pages import ACCOUNT_PAGES
from server.api.accounts import Account, Accounts
from server.api.credentials import generate_token, hash_token
from server.api.quota import Quotas
from server.app import create_app

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
TOKEN, OTHER = generate_token(), generate_token()
ACCOUNTS = Accounts(
    account=(
        Account(name="anna-of-the-club", token_hash=(hash_token(TOKEN),), limit=8),
        Account(name="ben-of-the-club", token_hash=(hash_token(OTHER),)),
    )
)
KEYS = {
    "subscription": {
        "tier", "active", "expiresAt", "isGracePeriod", "perks", "paymentProcessorData", "trainingStepsLeft",
        "accountType", "usage",
    },
    "information": {
        "emailVerified", "emailVerificationLetterSent", "trialActivated", "trialActionsLeft", "trialImagesLeft",
        "accountCreatedAt",
    },
    "priority": {"maxPriorityActions", "nextRefillAt", "taskPriority"},
    "keystore": {"keystore", "changeIndex"},
    "giftkeys": {"giftKeys"},
    "clientsettings": set(),
    "data": {"priority", "subscription", "keystore", "settings", "information"},
}  # fmt: skip
PERKS = {
    "maxPriorityActions", "startPriority", "moduleTrainingSteps", "unlimitedMaxPriority", "voiceGeneration",
    "imageGeneration", "unlimitedImageGeneration", "unlimitedImageGenerationLimits", "contextTokens",
}  # fmt: skip
LIMITS = [{"resolution": 4_194_304, "maxPrompts": 0}, {"resolution": 1_048_576, "maxPrompts": 1}]


@pytest.fixture
def client(model):
    """Client of a server that needs no token."""
    return TestClient(create_app(build_state(model, FakeModel())), base_url=BASE_URL)


@pytest.fixture
def shared(model, monkeypatch):
    """Client of a server with two accounts, where it is noon."""
    monkeypatch.setattr("server.api.state.Quotas", lambda: Quotas(lambda: NOON))
    state = build_state(model, FakeModel(), access=AccessRules(read_accounts=lambda: ACCOUNTS))
    with start_client(state) as client:
        yield client


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("page", ACCOUNT_PAGES)
def test_a_page_has_the_keys_that_clients_require(client, page):
    response = client.get(f"/user/{page}")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    assert set(response.json()) == KEYS[page]
    assert client.head(f"/user/{page}").status_code == 200


def test_the_subscription_allows_generating(client):
    subscription = client.get("/user/data").json()["subscription"]
    assert subscription == client.get("/user/subscription").json()
    assert (subscription["active"], subscription["tier"]) == (True, 3)
    assert subscription["expiresAt"] > 4e9
    perks = subscription["perks"]
    assert set(perks) == PERKS
    assert perks["unlimitedImageGenerationLimits"] == LIMITS
    assert (perks["unlimitedMaxPriority"], perks["unlimitedImageGeneration"]) == (True, True)
    assert subscription["trainingStepsLeft"] == {
        "fixedTrainingStepsLeft": 10_000,
        "purchasedTrainingSteps": 0,
    }
    usage = {"percent": 100, "purchasedPercent": 0, "isNegative": False, "timeUntilNextPercent": 0}
    assert subscription["usage"] == usage


def read_subscription(client, token):
    return client.get("/user/subscription", headers=bearer(token)).json()


def test_the_subscription_shows_what_the_account_has_left_of_its_limit(shared):
    untouched = read_subscription(shared, OTHER)
    assert read_subscription(shared, TOKEN)["trainingStepsLeft"]["fixedTrainingStepsLeft"] == 8
    assert read_subscription(shared, TOKEN)["usage"]["timeUntilNextPercent"] == 0
    for samples, left, percent in ((4, 4, 50), (3, 1, 13), (1, 0, 0)):
        body = {"input": "a", "parameters": {"width": 64, "height": 64, "n_samples": samples}}
        assert shared.post(GENERATE, json=body, headers=bearer(TOKEN)).status_code == 200
        subscription = read_subscription(shared, TOKEN)
        assert subscription["trainingStepsLeft"] == {
            "fixedTrainingStepsLeft": left,
            "purchasedTrainingSteps": 0,
        }
        assert (subscription["usage"]["percent"], subscription["usage"]["isNegative"]) == (percent, left == 0)
        assert subscription["usage"]["timeUntilNextPercent"] == 12 * 60 * 60
    assert (
        shared.get("/user/data", headers=bearer(TOKEN)).json()["subscription"].keys() == subscription.keys()
    )
    assert read_subscription(shared, OTHER) == untouched


@pytest.mark.parametrize("page", ["subscription", "data", "information", "objects/promptmacros"])
def test_no_page_has_the_name_of_an_account(shared, page):
    for token in (TOKEN, OTHER):
        assert "club" not in shared.get(f"/user/{page}", headers=bearer(token)).text


@pytest.mark.parametrize("kind", ["promptmacros", "stories", "presets", "shelf", "nothing"])
def test_nothing_is_stored_of_any_kind(client, kind):
    response = client.get(f"/user/objects/{kind}")
    assert (response.status_code, response.json()) == (200, {"objects": []})


def test_one_object_is_not_found(client):
    response = client.get("/user/objects/promptmacros/1")
    assert (response.status_code, response.json()["statusCode"]) == (404, 404)


@pytest.mark.parametrize("content", [b'{"uiLanguage": "en"}', b'"text"', b"", b"x" * 100_000])
def test_client_settings_are_accepted_and_not_stored(client, content):
    response = client.put(
        "/user/clientsettings", content=content, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 200
    assert response.headers["x-naiad-warning"] == "clientsettings: not stored"
    assert client.get("/user/clientsettings").json() == {}


def test_the_trial_has_ended(client):
    status = client.get("/ai/trial-status").json()
    assert set(status) == {
        "used_text_actions", "remaining_text_actions", "used_image_actions", "remaining_image_actions",
        "eligible_for_text_gens", "eligible_for_image_gens", "trial_activated",
    }  # fmt: skip
    assert status["trial_activated"] is True
    assert status["eligible_for_image_gens"] is False


@pytest.mark.parametrize(
    "path", [*(f"/user/{page}" for page in ACCOUNT_PAGES), "/user/objects/x", "/ai/trial-status"]
)
def test_every_page_needs_a_token_where_there_are_accounts(shared, path):
    assert shared.get(path).status_code == 401
    assert shared.get(path, headers=bearer(generate_token())).status_code == 401
    assert shared.get(path, headers=bearer(OTHER)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/user/nothing", 404),
        ("GET", "/user/../user/data", 200),
        ("GET", "/user/login", 405),
        ("GET", "/user/create-persistent-token", 405),
        ("POST", "/user/subscription", 405),
        ("PUT", "/user/keystore", 405),
        ("PUT", "/user/objects/promptmacros", 405),
        ("DELETE", "/user/data", 405),
    ],
)
def test_other_paths_and_methods(client, method, path, status):
    response = client.request(method, path)
    assert response.status_code == status
    assert status == 200 or response.json()["statusCode"] == status
