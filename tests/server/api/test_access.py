"""Access by token, Host and Origin; and that a refused request has no effect."""

import logging
import re

import pytest
from fake_model import BASE_URL, GENERATE, FakeModel, build_state, start_client
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.datastructures import Headers

from server.api import access
from server.api.access import AccessRules, needs_token
from server.api.accounts import Account, Accounts
from server.api.credentials import generate_token
from server.app import create_app
from server.errors import ApiError

TOKEN = "pst-" + "a1" * 32
OTHER = "pst-" + "b2" * 32
ORIGIN = "https://page.example"
BODY = {"input": "a", "parameters": {"width": 64, "height": 64}}


@pytest.fixture(scope="module")
def fake_model():
    return FakeModel()


@pytest.fixture(scope="module")
def client(model, fake_model):
    """Client of a server with two tokens, one of them an account's, and one allowed origin."""
    accounts = Accounts(account=(Account(name="b", key="k" * 64, token=OTHER),))
    rules = AccessRules((TOKEN,), origins=(ORIGIN,), read_accounts=lambda: accounts)
    state = build_state(model, fake_model, access=rules)
    with start_client(state) as client:
        yield client


def post(client, **headers):
    """Request an image; header values may be bytes."""
    return client.post(
        GENERATE, json=BODY, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN} ", 200),
        (f"Bearer {OTHER}", 200),
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        (TOKEN, 401),
        (f"Basic {TOKEN}", 401),
        (f"Bearer{TOKEN}", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"Bearer {TOKEN}1", 401),
        (f"Bearer {TOKEN.upper()}", 401),
        (f"Bearer {TOKEN}, Bearer {TOKEN}", 401),
        (f"Bearer {TOKEN[0]}", 401),
        ("Bearer " + "x" * 10_000, 401),
        ("Bearer " + "x" * 100_000, 431),
        (f"Bearer {'é' * 68}".encode("latin-1"), 401),
        ("Bearer пст-猫".encode(), 401),
        (b"Bearer \xff\xfe\x80", 401),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_generating_needs_a_token(client, fake_model, authorization, status):
    before = len(fake_model.jobs)
    response = post(client, **({} if authorization is None else {"Authorization": authorization}))
    assert response.status_code == status
    assert len(fake_model.jobs) - before == (status == 200)
    if status == 401:
        assert response.json() == {"statusCode": 401, "message": "Unauthorized"}
        assert response.headers["www-authenticate"] == "Bearer"


def test_a_repeated_authorization_header_is_refused(client):
    twice = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", f"Bearer {TOKEN}")]
    assert client.post(GENERATE, json=BODY, headers=twice).status_code == 401


@pytest.mark.parametrize("query", ["token", "key", "access_token", "Authorization", "api_key"])
def test_a_token_in_the_query_is_ignored(client, fake_model, query):
    before = len(fake_model.jobs)
    assert client.post(GENERATE, json=BODY, params={query: f"Bearer {TOKEN}"}).status_code == 401
    assert client.post(GENERATE, json=BODY, params={query: TOKEN}).status_code == 401
    assert len(fake_model.jobs) == before


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", GENERATE, 401),
        ("POST", "/ai%2Fgenerate-image", 401),
        ("GET", GENERATE, 401),
        ("POST", "/ai/nothing", 401),
        ("GET", "/user/subscription", 401),
        ("GET", "/user/nothing", 401),
        ("POST", "/user/create-persistent-token", 401),
        ("POST", "//ai/generate-image", 401),
        ("POST", "/ai//generate-image", 401),
        ("POST", "/ai/generate-image/", 401),
        ("POST", "//ai%2Fgenerate-image//", 401),
        ("POST", "/%2Fai/generate-image", 401),
        ("POST", "/ai/./generate-image", 401),
        ("POST", "/ai/../ai/generate-image", 401),
        ("GET", "//user//subscription/", 401),
        ("HEAD", "/user/subscription", 401),
        ("POST", "/user/login/", 400),
        ("GET", "//live/", 200),
        ("GET", "/", 200),
        ("GET", "/live", 200),
        ("GET", "/ready", 200),
        ("GET", "/models", 200),
    ],
)
def test_only_nai_paths_need_a_token(client, method, path, status):
    assert client.request(method, f"{BASE_URL}{path}").status_code == status


def test_a_mount_path_does_not_bypass_the_token(model):
    outer = FastAPI()
    outer.mount("/images", create_app(build_state(model, FakeModel(), access=AccessRules((TOKEN,)))))
    client = TestClient(outer, base_url=BASE_URL)
    assert client.get("/images/live").status_code == 200
    assert client.get("/images/user/subscription").status_code == 401


def test_every_token_is_compared_in_constant_time(monkeypatch):
    compared = []

    def compare_digest(a, b):
        compared.append((a, b))
        return a == b

    monkeypatch.setattr(access, "compare_digest", compare_digest)
    assert AccessRules((TOKEN, OTHER)).allows_token(f"Bearer {TOKEN}")
    assert compared == [(TOKEN.encode(), TOKEN.encode()), (TOKEN.encode(), OTHER.encode())]


def test_no_token_is_ever_logged(client, caplog):
    caplog.set_level(logging.DEBUG)
    foreign = "pst-somebodys-token-for-novelai"
    post(client, Authorization=f"Bearer {TOKEN}")
    post(client, Authorization=f"Bearer {foreign}")
    client.post(GENERATE, json=BODY, params={"key": foreign})
    client.post("/user/login", json={"key": foreign})
    assert len([record for record in caplog.records if record.name == "naiad.requests"]) == 4
    messages = "\n".join(
        record.getMessage() for record in caplog.records if not record.name.startswith("http")
    )
    assert TOKEN not in messages
    assert foreign not in messages


def test_a_generated_token_has_the_form_that_clients_check():
    assert re.fullmatch(r"pst-[A-Za-z0-9]{64}", generate_token())
    assert generate_token() != generate_token()


LOOPBACK = [
    "localhost", "LocalHost:4242", "localhost.", "naiad.localhost", "127.0.0.1", "127.0.0.1:80", "127.9.9.9", "[::1]",
    "[::1]:4242",
]  # fmt: skip
NAI = ["image.novelai.net", "api.novelai.net", "novelai.net", "image-x1.novelai.net:443", "API.NovelAI.net"]
FOREIGN = [
    "", " ", "evil.example", "evil.example:4242", "127.0.0.1.evil.example", "localhost.evil.example", "evil-localhost",
    "localhost:4242@evil.example", "evil.example/localhost", "notnovelai.net", "novelai.net.evil.example",
    "a.b.novelai.net", "novelai.net@evil.example", "0.0.0.0", "192.168.1.5", "[::]", "[2001:db8::1]", "2130706433",
    "0x7f.1", "127.1", "localhost, evil.example", "[::1", "\xe9vil.example", "localhost\x00", "*", "a" * 5000,
]  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "allowed", "refused"),
    [
        pytest.param(AccessRules(), LOOPBACK + NAI, FOREIGN, id="loopback"),
        pytest.param(
            AccessRules(bound=("192.168.1.5",)), [*LOOPBACK, "192.168.1.5:4242"], ["192.168.1.6", "evil.example"], id="an IPv4 address"
        ),
        pytest.param(
            AccessRules(bound=("2001:DB8:0::1",)), [*LOOPBACK, "[2001:db8::1]:4242"], ["[2001:db8::2]"], id="an IPv6 address"
        ),
        pytest.param(AccessRules(bound=("Box.lan",)), [*LOOPBACK, "box.lan:4242"], ["lan", "x.box.lan"], id="a name"),
        pytest.param(
            AccessRules(bound=("0.0.0.0",)), [*LOOPBACK, "10.1.2.3", "[2001:db8::1]:80"], ["box.lan", "evil.example"], id="every address"
        ),
        pytest.param(AccessRules(bound=("127.0.0.1", "10.0.0.7")), [*LOOPBACK, "10.0.0.7"], ["10.0.0.8", "box.lan"], id="two addresses"),
        pytest.param(AccessRules(bound=("::",)), [*LOOPBACK, "10.1.2.3", "[fe80::1]"], ["box.lan", "::1"], id="every IPv6 address"),
        pytest.param(
            AccessRules(hosts=("draw.example", "2001:db8::7")), ["draw.example:443", "DRAW.example.", "[2001:DB8:0::7]:80"], ["x.draw.example", "example"], id="named"
        ),
    ],
)  # fmt: skip
def test_hosts_are_allowed_by_name(rules, allowed, refused):
    assert [host for host in allowed if not rules.allows_host(host)] == []
    assert [host for host in refused if rules.allows_host(host)] == []


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:4242", "", "a" * 5000, b"\xe9vil.example"])
def test_a_foreign_host_is_refused(client, fake_model, method, host):
    before = len(fake_model.jobs)
    response = client.request(method, GENERATE, headers={"Host": host, "Authorization": f"Bearer {TOKEN}"})
    assert response.status_code == 403
    assert response.json()["message"].startswith("Host: ")
    assert "api.hosts" in response.json()["message"]
    assert len(response.text) < 300
    assert len(fake_model.jobs) == before


def check(*headers, method="POST", path="/live", rules=None):
    """The status that the rules refuse a request with, or None."""
    raw = [(name.encode(), value.encode()) for name, value in headers]
    error = (rules or AccessRules()).check(method, path, Headers(raw=raw))
    return error.status if isinstance(error, ApiError) else None


def test_a_missing_or_repeated_host_is_refused():
    assert check(("host", "localhost")) is None
    assert check() == 403
    assert check(("host", "localhost"), ("host", "evil.example")) == 403
    assert check(("host", "evil.example"), ("host", "localhost")) == 403
    assert check(("host", "localhost"), ("host", "localhost")) == 403


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (BASE_URL, 200),
        ("https://127.0.0.1:4242", 200),
        (ORIGIN, 200),
        ("https://novelai.net", 200),
        ("http://127.0.0.1:9999", 403),
        ("http://127.0.0.1", 403),
        ("http://localhost:4242", 403),
        ("http://page.example", 403),
        ("https://page.example:8443", 403),
        ("https://page.example.evil.example", 403),
        ("https://evil.example", 403),
        ("https://novelai.net.evil.example", 403),
        ("http://novelai.net", 403),
        ("null", 403),
        ("", 403),
        ("file://", 403),
        ("chrome-extension://abcdef", 403),
        (b"https://\xe9vil.example", 403),
        (f"{BASE_URL}, https://evil.example", 403),
        ("https://" + "e" * 5000, 403),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_only_allowed_origins_may_post(client, fake_model, origin, status):
    before = len(fake_model.jobs)
    response = post(client, Origin=origin, Authorization=f"Bearer {TOKEN}")
    assert response.status_code == status
    assert len(fake_model.jobs) - before == (status == 200)
    assert response.headers.get("access-control-allow-origin") == (ORIGIN if origin == ORIGIN else None)
    if status == 403:
        assert response.json()["message"].startswith("Origin: ")
        assert len(response.text) < 300


@pytest.mark.parametrize(
    "path", ["/user/login", "/user/create-persistent-token", GENERATE, "/live", "/nowhere"]
)
def test_no_path_accepts_a_post_from_a_foreign_origin(client, path):
    assert (
        client.post(path, headers={"Origin": "null", "Authorization": f"Bearer {TOKEN}"}).status_code == 403
    )


@pytest.mark.parametrize("origin", ["null", "https://evil.example", "https://novelai.net"])
def test_a_foreign_origin_may_get_but_not_read(client, origin):
    response = client.get("/models", headers={"Origin": origin})
    assert response.status_code == 200
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_an_allowed_origin_may_read_our_headers_and_errors(client):
    response = post(client, Origin=ORIGIN)
    assert response.status_code == 401
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert {"X-Request-Id", "X-Naiad-Warning"} <= set(
        response.headers["access-control-expose-headers"].split(", ")
    )
    assert "Origin" in response.headers["vary"]
    assert "access-control-allow-credentials" not in response.headers


def preflight(client, path, **headers):
    request_headers = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return client.options(path, headers=request_headers | headers)


@pytest.mark.parametrize("path", [GENERATE, "/user/login", "/user/subscription"])
def test_a_preflight_from_an_allowed_origin_lists_what_it_may_send(client, path):
    response = preflight(client, path, Origin=ORIGIN)
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.headers["access-control-allow-methods"] == "DELETE, GET, HEAD, POST, PUT"
    allowed = response.headers["access-control-allow-headers"].lower().split(", ")
    assert {"authorization", "content-type", "x-correlation-id", "x-initiated-at"} == set(allowed)
    assert "access-control-allow-credentials" not in response.headers


def ask_for_headers(client, names):
    response = preflight(client, GENERATE, Origin=ORIGIN, **{"Access-Control-Request-Headers": names})
    assert response.status_code == 204
    assert "Access-Control-Request-Headers" in response.headers["vary"]
    return response.headers["access-control-allow-headers"].lower().split(", ")


def test_a_preflight_allows_the_headers_that_the_page_asks_for(client):
    assert {"content-type", "x-requested-with"} <= {*ask_for_headers(client, "content-type,x-requested-with")}
    assert {"authorization", "accept", "x-my_app"} <= {*ask_for_headers(client, " Accept ,X-My_App,,")}
    assert len(ask_for_headers(client, ",".join(f"x-{number}" for number in range(500)))) == 4 + 64


@pytest.mark.parametrize("name", ["a b", "a\tb", "x:y", "x" * 65, '"x"', "*,(x)", "x\xe9"])
def test_a_preflight_allows_no_name_that_is_no_header(client, name):
    allowed = ask_for_headers(client, name.encode("latin-1"))
    assert {*allowed} - {"*"} == {"authorization", "content-type", "x-correlation-id", "x-initiated-at"}


@pytest.mark.parametrize(
    ("origins", "sent"),
    [
        (("tauri://localhost",), "tauri://localhost"),
        (("safari-web-extension://8c7e",), "safari-web-extension://8C7E"),
        (("https://page.example",), "https://page.example:443"),
        (("app://obsidian.md",), "app://obsidian.md"),
        (("app://",), "app://"),
        (("https://tauri.localhost",), "https://tauri.localhost"),
        (("chrome-extension://abcdefghijklmnop",), "chrome-extension://abcdefghijklmnop"),
        (("moz-extension://4a2b-11",), "moz-extension://4A2B-11"),
        (("null",), "null"),
    ],
)
def test_a_listed_origin_of_any_scheme_may_send_and_is_named_as_it_was_sent(model, origins, sent):
    state = build_state(model, FakeModel(), access=AccessRules(origins=origins))
    client = TestClient(create_app(state), base_url=BASE_URL)
    assert preflight(client, GENERATE, Origin=sent).headers["access-control-allow-origin"] == sent
    assert client.get("/live", headers={"Origin": sent}).headers["access-control-allow-origin"] == sent


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "https://novelai.net", "http://127.0.0.1:9999"]
)
def test_a_preflight_from_another_origin_is_refused(client, fake_model, origin):
    before = len(fake_model.jobs)
    response = preflight(client, GENERATE, Origin=origin)
    assert response.status_code == 403
    assert not [name for name in response.headers if name.startswith("access-control")]
    assert len(fake_model.jobs) == before


def test_an_allowed_origin_with_a_foreign_host_is_refused(client):
    assert preflight(client, GENERATE, Origin=ORIGIN, Host="evil.example").status_code == 403
    assert check(("host", "evil.example"), ("origin", "http://evil.example")) == 403


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", False), ("127.0.0.1", False), ("::1", False), ("127.8.8.8", False),
     ("0.0.0.0", True), ("::", True), ("192.168.1.5", True), ("box.lan", True)],
)  # fmt: skip
def test_addresses_reachable_from_outside_need_a_token(host, expected):
    assert needs_token(host) is expected
