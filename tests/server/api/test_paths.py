"""One spelling for each path."""

import logging

import pytest
from fake_model import BASE_URL, GENERATE, FakeModel, build_state, start_client
from fastapi.testclient import TestClient

from server.api.access import AccessRules
from server.api.paths import normalize_path
from server.app import create_app
from server.config.addresses import OWN_SEGMENTS

PREFIXES = ("/native", "/native/v2", "/proxy/nai")


@pytest.fixture(scope="module")
def client(model, signing_key):
    state = build_state(model, FakeModel(), signing_key)
    with start_client(state) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "normal"),
    [("/", "/"), ("", "/"), ("//", "/"), ("//live", "/live"), ("/live//", "/live"), ("/a//b///c/", "/a/b/c"), ("/./a", "/./a")],
)  # fmt: skip
def test_slashes_are_single_and_none_is_at_the_end(path, normal):
    assert normalize_path(path) == normal


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("/native/ai/x", "/ai/x"),
        ("/native//ai///x/", "/ai/x"),
        ("//native/ai/x", "/ai/x"),
        ("/native", "/"),
        ("/native/", "/"),
        ("/native/v2/ai/x", "/ai/x"),
        ("/proxy/nai/live", "/live"),
        ("/ai/x", "/ai/x"),
        ("/nativeai/x", "/nativeai/x"),
        ("/native/native/ai/x", "/native/ai/x"),
        ("/ai/native/x", "/ai/native/x"),
        ("/native/../ai/x", "/../ai/x"),
    ],
)
def test_one_prefix_is_removed(path, normal):
    assert normalize_path(path, PREFIXES) == normal


PROTECTED = [
    "/native/ai/generate-image", "/native//ai/generate-image", "//native///ai//generate-image/", "/ai/generate-image",
    "/native%2Fai/generate-image", "/native/v2/ai/generate-image", "/native/%61i/generate-image",
]  # fmt: skip


def test_access_rules_and_the_log_see_the_path_without_the_prefix(model, caplog):
    caplog.set_level(logging.INFO, "naiad.requests")
    rules = AccessRules(("pst-secret-token",))
    client = TestClient(
        create_app(build_state(model, FakeModel(), access=rules, prefixes=PREFIXES)), base_url=BASE_URL
    )
    assert {client.post(f"{BASE_URL}{path}").status_code for path in PROTECTED} == {401}
    assert {record.getMessage().split(" ")[2] for record in caplog.records} == {GENERATE}
    for path in (
        "/native/%2e%2e/ai/generate-image",
        "/native/%2E/ai/generate-image",
        "/x/native/ai/generate-image",
    ):
        assert client.post(f"{BASE_URL}{path}").status_code == 404
    assert client.get("/native/live").json() == client.get("/live").json() == {"status": "alive"}
    assert client.get("/proxy/nai").json() == {"name": "naiad"}


def test_no_prefix_may_begin_like_a_path_of_the_server(client):
    first = {route.path.split("/")[1] for route in client.app.routes}
    assert first - {""} <= OWN_SEGMENTS


@pytest.mark.parametrize(
    "path", ["/" + GENERATE, f"{GENERATE}/", "/ai//generate-image", "//ai//generate-image//"]
)
def test_doubled_and_trailing_slashes_reach_the_same_route(client, path):
    body = {"input": "a", "parameters": {"width": 64, "height": 64, "seed": 1}}
    assert client.post(f"{BASE_URL}{path}", json=body).status_code == 200


@pytest.mark.parametrize("path", ["/LIVE", "/live\\", "/live;x", "/live%00", "/li%2Fve"])
def test_other_spellings_are_no_paths(client, path):
    assert client.get(f"{BASE_URL}{path}").status_code == 404


@pytest.mark.parametrize(
    "path",
    ["/", "/live", "/ready", "/models", "/key", "/user/subscription", "/user/data", "/ready/", "//models"],
)
def test_head_answers_like_get_without_the_body(client, path):
    get, head = client.get(f"{BASE_URL}{path}"), client.head(f"{BASE_URL}{path}")
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "content-type"):
        assert head.headers[name] == get.headers[name]


def test_a_path_with_two_routes_names_the_methods_of_both(client):
    assert client.options("/user/clientsettings").headers["allow"] == "GET, HEAD, PUT, OPTIONS"
    response = client.delete("/user/clientsettings")
    assert response.json()["message"] == "DELETE: this path takes GET, HEAD, PUT"


def test_every_path_names_its_methods_and_head_goes_with_get(client):
    for path in {route.path for route in client.app.routes}:
        response = client.options(path)
        methods = response.headers["allow"].split(", ")
        assert (response.status_code, response.content) == (204, b"")
        assert ("GET" in methods) == ("HEAD" in methods)
        assert "OPTIONS" in methods
    assert client.options("/nowhere").status_code == 404


def test_head_of_an_unknown_path_or_a_post_path_has_its_status(client):
    assert client.head("/nowhere").status_code == 404
    assert client.head(GENERATE).status_code == 405
