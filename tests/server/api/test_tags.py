"""`GET /ai/generate-image/suggest-tags`."""

import pytest
from fake_model import BASE_URL, FakeModel, build_state
from fastapi.testclient import TestClient

from server.api.access import AccessRules
from server.app import create_app
from server.tags.library import TagLibrary
from server.tags.table import Tag

SUGGEST = "/ai/generate-image/suggest-tags"
TAGS = [Tag("1girl", 6_000_000, ("女の子",)), Tag("1boy", 900), Tag("smile", 5_000)]


@pytest.fixture(scope="module")
def build_client(model):

    def build_client(**changes):
        return TestClient(create_app(build_state(model, FakeModel(), **changes)), base_url=BASE_URL)

    return build_client


@pytest.fixture(scope="module")
def client(build_client):
    return build_client(tags=TagLibrary(lambda: TAGS))


def test_suggestions_have_nais_form(client):
    response = client.get(SUGGEST, params={"model": "nai-diffusion-4-5-full", "prompt": "smile, 1"})
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.json() == {
        "tags": [
            {"tag": "1girl", "count": 10_000, "confidence": 1.0},
            {"tag": "1boy", "count": 900, "confidence": 0.74},
        ]
    }


def test_in_japanese_the_response_is_a_bare_array(client):
    response = client.get(SUGGEST, params={"prompt": "女", "lang": "jp"})
    assert response.json() == [{"jp_tag": "女の子", "en_tag": "1girl", "power": 10_000}]


@pytest.mark.parametrize("query", ["", "?prompt=", "?prompt=%20&model=x", "?prompt=1girl,%20", "?prompt=%ff"])
def test_a_prompt_without_a_tag_has_no_suggestions(client, query):
    response = client.get(SUGGEST + query)
    assert (response.status_code, response.json()) == (200, {"tags": []})
    response = client.get(f"{SUGGEST}{query or '?'}&lang=jp")
    assert (response.status_code, response.json()) == (200, [])


def test_an_unknown_language_is_refused(client):
    response = client.get(SUGGEST, params={"prompt": "a", "lang": "fr"})
    assert (response.status_code, response.json()["message"]) == (400, "lang: 'fr' is not en or jp")


def test_a_body_is_ignored_and_head_is_answered(client):
    junk = client.request(
        "GET", f"{SUGGEST}?prompt=smi", content="junk", headers={"Content-Type": "text/plain"}
    )
    assert junk.json()["tags"][0]["tag"] == "smile"
    head = client.head(f"{SUGGEST}?prompt=smi")
    assert (head.status_code, head.content) == (200, b"")


def test_a_token_is_needed_where_one_is_set(build_client):
    client = build_client(access=AccessRules(("pst-secret",)))
    assert client.get(SUGGEST).status_code == 401
    assert client.get(SUGGEST, headers={"Authorization": "Bearer pst-secret"}).status_code == 200


def test_without_a_list_the_demo_s_tags_are_known(build_client):
    found = build_client().get(SUGGEST, params={"prompt": "twin"}).json()["tags"]
    assert [one["tag"] for one in found] == ["twintails"]


def test_the_index_is_built_once_and_outlives_a_client_that_hangs_up(build_client):
    built = []

    def read():
        built.append(True)
        return TAGS

    library = TagLibrary(read)
    future = library.start()
    assert not future.cancel()
    with build_client(tags=library) as client:
        assert all(client.get(f"{SUGGEST}?prompt=smi").json()["tags"] for _ in range(3))
    assert built == [True]
