"""Who is let in: tokens, host names and browser pages; and that nothing happens for those who are not."""

import logging
import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from painter import HERE, URL, Painter, house
from starlette.datastructures import Headers

from server.api import access as door
from server.api.access import AccessRules, generate_token, needs_token, parse_host
from server.api.accounts import Account, Accounts
from server.app import create_app
from server.config.catalog import single_model_catalog
from server.engine.model import detect_model
from server.errors import ApiError

TOKEN = "pst-" + "a1" * 32
OTHER = "pst-" + "b2" * 32
PAGE = "https://page.example"
BODY = {"input": "a", "parameters": {"width": 64, "height": 64}}


@pytest.fixture(scope="module")
def served(demo_file):
    return detect_model(single_model_catalog(demo_file))


@pytest.fixture(scope="module")
def painter():
    return Painter()


@pytest.fixture(scope="module")
def client(served, painter):
    """Before a door with two tokens, one of them an account's, and a page that may send requests."""
    accounts = Accounts(account=(Account(name="b", key="k" * 64, token=OTHER),))
    rules = AccessRules((TOKEN, *accounts.tokens), origins=(PAGE,))
    here = house(served, painter, access=rules, accounts=accounts)
    with TestClient(create_app(here), base_url=HERE) as client:
        here.engine.wait_ready()
        yield client


def ask(client, **headers):
    """A request for a picture; header values may be bytes."""
    return client.post(
        URL, json=BODY, headers={name.replace("_", "-"): told for name, told in headers.items()}
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
    ids=lambda told: ascii(told)[:40],
)
def test_a_picture_needs_a_token(client, painter, authorization, status):
    before = len(painter.jobs)
    answer = ask(client, **({} if authorization is None else {"Authorization": authorization}))
    assert answer.status_code == status
    assert len(painter.jobs) - before == (status == 200)
    if status == 401:
        assert answer.json() == {"statusCode": 401, "message": "Unauthorized"}
        assert answer.headers["www-authenticate"] == "Bearer"


def test_two_tokens_are_no_token(client):
    twice = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", f"Bearer {TOKEN}")]
    assert client.post(URL, json=BODY, headers=twice).status_code == 401


@pytest.mark.parametrize("query", ["token", "key", "access_token", "Authorization", "api_key"])
def test_a_token_in_the_address_is_none(client, painter, query):
    before = len(painter.jobs)
    assert client.post(URL, json=BODY, params={query: f"Bearer {TOKEN}"}).status_code == 401
    assert client.post(URL, json=BODY, params={query: TOKEN}).status_code == 401
    assert len(painter.jobs) == before


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", URL, 401),
        ("POST", "/ai%2Fgenerate-image", 401),
        ("GET", URL, 401),
        ("POST", "/ai/nothing", 401),
        ("GET", "/user/subscription", 401),
        ("GET", "/user/nothing", 401),
        ("POST", "/user/create-persistent-token", 401),
        ("POST", "/user/login/", 401),
        ("GET", "/", 200),
        ("GET", "/live", 200),
        ("GET", "/ready", 200),
        ("GET", "/models", 200),
    ],
)
def test_only_what_nai_has_needs_a_token(client, method, path, status):
    assert client.request(method, path).status_code == status


def test_a_path_in_front_of_the_application_opens_nothing(served):
    outer = FastAPI()
    outer.mount("/images", create_app(house(served, Painter(), access=AccessRules((TOKEN,)))))
    client = TestClient(outer, base_url=HERE)
    assert client.get("/images/live").status_code == 200
    assert client.get("/images/user/subscription").status_code == 401


def test_tokens_are_compared_in_constant_time_and_all_of_them(monkeypatch):
    compared = []

    def compare(one, other):
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(door, "compare_digest", compare)
    assert AccessRules((TOKEN, OTHER)).allows_token(f"Bearer {TOKEN}")
    assert compared == [(TOKEN.encode(), TOKEN.encode()), (TOKEN.encode(), OTHER.encode())]


def test_no_token_is_ever_logged(client, caplog):
    caplog.set_level(logging.DEBUG)
    stranger = "pst-somebodys-token-for-novelai"
    ask(client, Authorization=f"Bearer {TOKEN}")
    ask(client, Authorization=f"Bearer {stranger}")
    client.post(URL, json=BODY, params={"key": stranger})
    client.post("/user/login", json={"key": stranger})
    assert len([record for record in caplog.records if record.name == "naiad.requests"]) == 4
    ours = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("http"))
    assert TOKEN not in ours
    assert stranger not in ours


def test_a_new_token_has_the_form_that_clients_check():
    assert re.fullmatch(r"pst-[A-Za-z0-9]{64}", generate_token())
    assert generate_token() != generate_token()


LOOPBACK = [
    "localhost", "LocalHost:4242", "localhost.", "naiad.localhost", "127.0.0.1", "127.0.0.1:80", "127.9.9.9", "[::1]",
    "[::1]:4242",
]  # fmt: skip
NAIS = ["image.novelai.net", "api.novelai.net", "novelai.net", "image-x1.novelai.net:443", "API.NovelAI.net"]
FOREIGN = [
    "", " ", "evil.example", "evil.example:4242", "127.0.0.1.evil.example", "localhost.evil.example", "evil-localhost",
    "localhost:4242@evil.example", "evil.example/localhost", "notnovelai.net", "novelai.net.evil.example",
    "a.b.novelai.net", "novelai.net@evil.example", "0.0.0.0", "192.168.1.5", "[::]", "[2001:db8::1]", "2130706433",
    "0x7f.1", "127.1", "localhost, evil.example", "[::1", "\xe9vil.example", "localhost\x00", "*", "a" * 5000,
]  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "admitted", "refused"),
    [
        pytest.param(AccessRules(), LOOPBACK + NAIS, FOREIGN, id="loopback"),
        pytest.param(
            AccessRules(bound="192.168.1.5"), [*LOOPBACK, "192.168.1.5:4242"], ["192.168.1.6", "evil.example"], id="a number"
        ),
        pytest.param(
            AccessRules(bound="2001:DB8:0::1"), [*LOOPBACK, "[2001:db8::1]:4242"], ["[2001:db8::2]"], id="a long number"
        ),
        pytest.param(AccessRules(bound="Box.lan"), [*LOOPBACK, "box.lan:4242"], ["lan", "x.box.lan"], id="a name"),
        pytest.param(
            AccessRules(bound="0.0.0.0"), [*LOOPBACK, "10.1.2.3", "[2001:db8::1]:80"], ["box.lan", "evil.example"], id="all"
        ),
        pytest.param(AccessRules(bound="::"), [*LOOPBACK, "10.1.2.3", "[fe80::1]"], ["box.lan", "::1"], id="all of IPv6"),
        pytest.param(
            AccessRules(hosts=("Draw.example",)), ["draw.example:443", "DRAW.example."], ["x.draw.example", "example"], id="named"
        ),
    ],
)  # fmt: skip
def test_hosts_are_let_in_by_name(rules, admitted, refused):
    assert [host for host in admitted if not rules.allows_host(host)] == []
    assert [host for host in refused if rules.allows_host(host)] == []


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:4242", "", "a" * 5000, b"\xe9vil.example"])
def test_a_name_that_somebody_else_gave_us_is_refused(client, painter, method, host):
    before = len(painter.jobs)
    answer = client.request(method, URL, headers={"Host": host, "Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 403
    assert answer.json()["message"].startswith("Host: ")
    assert "api.hosts" in answer.json()["message"]
    assert len(answer.text) < 300
    assert len(painter.jobs) == before


def refusal(*headers, method="POST", path="/live", rules=None):
    """The status that is refused with, before anything of the application is reached."""
    raw = [(name.encode(), told.encode()) for name, told in headers]
    found = (rules or AccessRules()).check(method, path, Headers(raw=raw))
    return found.status if isinstance(found, ApiError) else None


def test_a_host_that_is_missing_or_sent_twice_is_none_of_ours():
    assert refusal(("host", "localhost")) is None
    assert refusal() == 403
    assert refusal(("host", "localhost"), ("host", "evil.example")) == 403
    assert refusal(("host", "evil.example"), ("host", "localhost")) == 403
    assert refusal(("host", "localhost"), ("host", "localhost")) == 403


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (HERE, 200),
        ("https://127.0.0.1:4242", 200),
        (PAGE, 200),
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
        (f"{HERE}, https://evil.example", 403),
        ("https://" + "e" * 5000, 403),
    ],
    ids=lambda told: ascii(told)[:40],
)
def test_pages_that_are_not_ours_send_nothing(client, painter, origin, status):
    before = len(painter.jobs)
    answer = ask(client, Origin=origin, Authorization=f"Bearer {TOKEN}")
    assert answer.status_code == status
    assert len(painter.jobs) - before == (status == 200)
    assert answer.headers.get("access-control-allow-origin") == (PAGE if origin == PAGE else None)
    if status == 403:
        assert answer.json()["message"].startswith("Origin: ")
        assert len(answer.text) < 300


@pytest.mark.parametrize("path", ["/user/login", "/user/create-persistent-token", URL, "/live", "/nowhere"])
def test_no_path_takes_a_post_from_a_foreign_page(client, path):
    assert (
        client.post(path, headers={"Origin": "null", "Authorization": f"Bearer {TOKEN}"}).status_code == 403
    )


@pytest.mark.parametrize("origin", ["null", "https://evil.example", "https://novelai.net"])
def test_a_foreign_page_may_ask_but_not_read(client, origin):
    answer = client.get("/models", headers={"Origin": origin})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_page_that_may_read_gets_our_own_headers_too_and_refusals(client):
    answer = ask(client, Origin=PAGE)
    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert {"X-Request-Id", "X-Naiad-Warning"} <= set(
        answer.headers["access-control-expose-headers"].split(", ")
    )
    assert "Origin" in answer.headers["vary"]
    assert "access-control-allow-credentials" not in answer.headers


def preflight(client, path, **headers):
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return client.options(path, headers=asked | headers)


@pytest.mark.parametrize("path", [URL, "/user/login", "/user/subscription"])
def test_a_listed_page_is_told_what_it_may_send(client, path):
    answer = preflight(client, path, Origin=PAGE)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-methods"] == "GET, POST"
    allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
    assert {"authorization", "content-type", "x-correlation-id", "x-initiated-at"} == set(allowed)
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "https://novelai.net", "http://127.0.0.1:9999"]
)
def test_any_other_page_that_asks_is_refused(client, painter, origin):
    before = len(painter.jobs)
    answer = preflight(client, URL, Origin=origin)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert len(painter.jobs) == before


def test_a_listed_page_behind_a_foreign_name_is_refused(client):
    assert preflight(client, URL, Origin=PAGE, Host="evil.example").status_code == 403
    assert refusal(("host", "evil.example"), ("origin", "http://evil.example")) == 403


@pytest.mark.parametrize(
    ("host", "needed"),
    [("localhost", False), ("127.0.0.1", False), ("::1", False), ("127.8.8.8", False),
     ("0.0.0.0", True), ("::", True), ("192.168.1.5", True), ("box.lan", True)],
)  # fmt: skip
def test_listening_beyond_the_machine_needs_a_token(host, needed):
    assert needs_token(host) is needed


@pytest.mark.parametrize(
    ("host", "name"),
    [("A.b:80", "a.b"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("a.", "a"), ("a.:80", "a"), ("", "")],
)
def test_the_name_in_a_host(host, name):
    assert parse_host(host) == name
