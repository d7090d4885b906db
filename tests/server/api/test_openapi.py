"""The OpenAPI document and the page that shows it."""

import re

import pytest
from fake_model import BASE_URL, FakeModel, build_state, start_client
from fastapi.testclient import TestClient

from demo.checkpoint import VIBE
from server.api.access import AccessRules
from server.api.examples import build_examples
from server.app import create_app
from server.config.catalog import single_model_catalog
from server.engine.model import detect_model


@pytest.fixture(scope="module")
def model(demo_file):
    return detect_model(single_model_catalog(demo_file, vibe=VIBE))


@pytest.fixture(scope="module")
def client(model, signing_key):
    state = build_state(model, FakeModel(), signing_key)
    with start_client(state) as client:
        yield client


@pytest.fixture(scope="module")
def document(client):
    return client.get("/openapi.json").json()


def list_references(node):
    if isinstance(node, dict):
        yield from [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        for value in node.values():
            yield from list_references(value)
    elif isinstance(node, list):
        for value in node:
            yield from list_references(value)


def test_the_document_has_every_route_and_no_loose_end(client, document):
    shown = {route.path for route in client.app.routes if getattr(route, "include_in_schema", True)}
    assert set(document["paths"]) == shown
    names = {reference.removeprefix("#/components/schemas/") for reference in list_references(document)}
    assert names <= set(document["components"]["schemas"])
    assert {"head", "options"} & {method for path in document["paths"].values() for method in path} == set()


def test_bodies_have_the_names_of_the_wire_and_say_what_is_allowed(document):
    schemas = document["components"]["schemas"]
    assert {"qualityToggle", "ucPreset", "inpaintImg2ImgStrength"} <= set(
        schemas["InfillParameters"]["properties"]
    )
    assert "from 1 to 50" in schemas["GenerateParameters"]["properties"]["steps"]["description"]
    references = list_references(schemas["GenerateBody"]["properties"]["parameters"])
    assert {reference.rpartition("/")[2] for reference in references} == {
        "GenerateParameters", "Img2ImgParameters", "InfillParameters",
    }  # fmt: skip


BODYLESS = ("/user/create-persistent-token",)
"""Paths that read no body."""


def test_every_operation_names_its_error_and_its_token(document):
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            error = operation["responses"]["default"]["content"]["application/json"]["schema"]["$ref"]
            assert error.endswith("/OpenAIError" if path.startswith("/v1/") else "/Error")
            protected = ("/ai/", "/user/", "/v1/", "/archive", "/queue", "/metrics")
            is_protected = path.startswith(protected) and path != "/user/login"
            assert ("security" in operation) == is_protected
            has_body = method in ("post", "put") and path not in BODYLESS
            assert ("requestBody" in operation) == has_body, path


EXAMPLES = [(path, name) for path, examples in build_examples().items() for name in examples]


@pytest.mark.parametrize(("path", "name"), EXAMPLES, ids=lambda value: value)
def test_every_example_is_answered(client, document, path, name):
    operation = document["paths"][path]["put" if path == "/user/clientsettings" else "post"]
    body = operation["requestBody"]["content"]["application/json"]["examples"][name]["value"]
    response = client.request("PUT" if path == "/user/clientsettings" else "POST", path, json=body)
    assert str(response.status_code) in operation["responses"]
    assert response.status_code < 300, response.text
    assert (
        response.headers["content-type"].split(";")[0]
        in operation["responses"][str(response.status_code)]["content"]
    )


def test_the_page_loads_and_runs_nothing_from_elsewhere(client):
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    policy = dict(rule.strip().split(" ", 1) for rule in page.headers["content-security-policy"].split(";"))
    assert (policy["default-src"], policy["script-src"], policy["connect-src"]) == (
        "'none'",
        "'self'",
        "'self'",
    )
    assert policy["frame-ancestors"] == "'none'"
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) == 3
    for address in loaded:
        response = client.get(address)
        assert address.startswith("/docs/")
        assert response.status_code == 200
        assert response.headers["content-type"].split(";")[0] in ("text/css", "text/javascript")
    assert "http" not in page.text
    assert "validatorUrl: null" in client.get("/docs/start.js").text
    assert "<script>" not in page.text


@pytest.mark.parametrize(
    "name", ["nothing.js", "..%2f..%2f__init__.py", "favicon-32x32.png", "swagger-ui.css%00"]
)
def test_no_other_file_is_sent(client, name):
    assert client.get(f"/docs/{name}").status_code == 404


@pytest.mark.parametrize(
    ("bound", "status"),
    [
        (("127.0.0.1",), 200),
        (("localhost", "::1"), 200),
        (("127.0.0.1", "10.0.0.7"), 404),
        (("0.0.0.0",), 404),
    ],
)
def test_off_loopback_there_is_neither(model, bound, status):
    state = build_state(model, FakeModel(), access=AccessRules(bound=bound))
    client = TestClient(create_app(state), base_url=BASE_URL)
    for path in ("/docs", "/openapi.json", "/docs/start.js"):
        assert client.get(path).status_code == status
