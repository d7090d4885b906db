"""One spelling for each path."""

import pytest
from fake_model import BASE_URL, GENERATE, FakeModel, build_state
from fastapi.testclient import TestClient

from server.api.paths import normalize_path
from server.app import create_app
from server.config.catalog import single_model_catalog
from server.engine.model import detect_model


@pytest.fixture(scope="module")
def client(demo_file, signing_key):
    state = build_state(detect_model(single_model_catalog(demo_file)), FakeModel(), signing_key)
    with TestClient(create_app(state), base_url=BASE_URL) as client:
        state.engine.wait_ready()
        yield client


@pytest.mark.parametrize(
    ("path", "normal"),
    [("/", "/"), ("", "/"), ("//", "/"), ("//live", "/live"), ("/live//", "/live"), ("/a//b///c/", "/a/b/c"), ("/./a", "/./a")],
)  # fmt: skip
def test_slashes_are_single_and_none_is_at_the_end(path, normal):
    assert normalize_path(path) == normal


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
    ["/", "/live", "/ready", "/models", "/key", "/user/subscription", "/user/information", "/user/priority",
     "/user/keystore", "/user/data", "/ready/", "//models"],
)  # fmt: skip
def test_head_answers_like_get_without_the_body(client, path):
    get, head = client.get(f"{BASE_URL}{path}"), client.head(f"{BASE_URL}{path}")
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "content-type"):
        assert head.headers[name] == get.headers[name]


def test_head_of_an_unknown_path_or_a_post_path_has_its_status(client):
    assert client.head("/nowhere").status_code == 404
    assert client.head(GENERATE).status_code == 405
