"""The limits of accounts: images a day, requests at a time, priority, and what is given back."""

import ast
import json
import logging
import socket
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from fake_model import BASE_URL, GENERATE, FakeModel, build_state, start_client
from fastapi.testclient import TestClient
from image_files import make_png
from live_server import build_get, build_post, exchange, serve
from paths import ROOT
from starlette.requests import Request
from waiting import LIMIT, wait_until

from server.api.access import AccessRules
from server.api.accounts import Account, Accounts
from server.api.credentials import generate_token, hash_token
from server.api.jobs import hold_quota
from server.api.quota import Quotas
from server.app import create_app
from server.engine.queue import Queue
from server.engine.ticket import Ticket
from server.errors import LimitReached, Overloaded

TOKEN, LOW, HIGH, OWN = (generate_token() for _ in range(4))
ANNA = Account(name="anna", token_hash=(hash_token(TOKEN),), limit=5, concurrency=1)
ACCOUNTS = Accounts(
    account=(
        ANNA,
        Account(name="low", token_hash=(hash_token(LOW),), priority=-5),
        Account(name="high", token_hash=(hash_token(HIGH),), priority=5),
    )
)
RULES = AccessRules((OWN,), read_accounts=lambda: ACCOUNTS)


class Clock:
    """The time, which a test moves."""

    def __init__(self):
        self.time = datetime(2026, 11, 28, 20, 30, tzinfo=UTC)

    def __call__(self):
        return self.time


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """The time of all quotas, so that no day ends during a test."""
    clock = Clock()
    monkeypatch.setattr("server.api.state.Quotas", lambda: Quotas(clock))
    return clock


@pytest.fixture
def quotas(clock):
    return Quotas(clock)


def test_images_are_counted_until_the_limit(quotas):
    for images in (2, 3):
        quotas.end(quotas.begin(ANNA, images), refund=False)
    assert quotas.count_images("anna") == 5
    with pytest.raises(LimitReached) as caught:
        quotas.check(ANNA)
    assert caught.value.message == (
        "Not enough Anlas: all 5 images of today are used; a new day begins at 00:00 UTC, in 3 h 30 min"
    )


def test_a_request_for_more_than_is_left_takes_nothing(quotas):
    quotas.end(quotas.begin(ANNA, 4), refund=False)
    with pytest.raises(
        LimitReached, match=r"Not enough Anlas: 2 images were asked for, 1 of 5 are left today; "
    ):
        quotas.begin(ANNA, 2)
    quotas.end(quotas.begin(ANNA, 1), refund=False)
    assert quotas.count_images("anna") == 5


def test_the_count_begins_again_at_midnight(quotas, clock):
    quotas.end(quotas.begin(ANNA, 5), refund=False)
    clock.time += timedelta(hours=3, minutes=29, seconds=59)
    assert quotas.count_images("anna") == 5
    assert quotas.seconds_left() == 1
    clock.time += timedelta(seconds=1)
    assert quotas.count_images("anna") == 0
    assert quotas.seconds_left() == 86_400
    quotas.check(ANNA, 5)


def test_images_are_refunded_on_the_day_they_were_counted(quotas, clock):
    quotas.end(quotas.begin(ANNA, 5), refund=True)
    assert quotas.count_images("anna") == 0
    use = quotas.begin(ANNA, 5)
    clock.time += timedelta(hours=4)
    quotas.end(use, refund=True)
    assert quotas.count_images("anna") == 0
    quotas.check(ANNA, 5)


def test_as_many_requests_as_the_account_may_have(quotas):
    pair = ANNA.model_copy(update={"concurrency": 2})
    uses = [quotas.begin(pair, 1) for _ in range(2)]
    with pytest.raises(
        Overloaded, match=r"^Concurrent generation is locked: .* 2 requests at a time; try again"
    ):
        quotas.begin(pair, 1)
    with pytest.raises(Overloaded, match="1 request at a time; try again shortly"):
        quotas.check(ANNA)
    with pytest.raises(Overloaded, match="try again in 31 seconds"):
        quotas.check(ANNA, free_in=30.2)
    quotas.end(uses[0], refund=False)
    quotas.begin(pair, 1)


def test_accounts_do_not_share_a_quota(quotas):
    quotas.begin(ANNA, 5)
    quotas.check(ANNA.model_copy(update={"name": "ben"}), 5)


def test_a_request_without_an_account_is_not_counted(quotas):
    quotas.check(None, 10**6)
    quotas.end(quotas.begin(None, 10**6), refund=False)
    assert quotas.begin(None, 1) is None


def test_without_limits_anything_is_allowed(quotas):
    free = Account(name="free", token_hash=(hash_token(TOKEN),))
    for _ in range(50):
        quotas.begin(free, 8)
    assert quotas.count_images("free") == 400


@pytest.fixture
def client(model, fake_model):
    state = build_state(model, fake_model, access=RULES)
    with start_client(state, raise_server_exceptions=False) as client:
        yield client


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def generate(client, token=TOKEN, **parameters):
    body = {"input": "a", "parameters": {"width": 64, "height": 64, "steps": 1} | parameters}
    return client.post(GENERATE, json=body, headers=bearer(token))


def count_left(client):
    return client.get("/user/subscription", headers=bearer(TOKEN)).json()["trainingStepsLeft"][
        "fixedTrainingStepsLeft"
    ]


def test_a_limit_counts_images_and_upscales(client, fake_model):
    assert generate(client, n_samples=3).status_code == 200
    assert count_left(client) == 2
    upscaled = client.post(
        "/ai/upscale", json={"image": b64encode(make_png()).decode()}, headers=bearer(TOKEN)
    )
    assert upscaled.status_code == 200
    assert count_left(client) == 1
    refused = generate(client, n_samples=2)
    assert refused.status_code == 402
    assert refused.json()["statusCode"] == 402
    assert refused.json()["message"].startswith(
        "Not enough Anlas: 2 images were asked for, 1 of 5 are left today"
    )
    assert generate(client).status_code == 200
    before = len(fake_model.jobs)
    for response in (generate(client), client.post("/ai/upscale", json={}, headers=bearer(TOKEN))):
        assert response.status_code == 402
        assert (
            "all 5 images of today are used; a new day begins at 00:00 UTC, in " in response.json()["message"]
        )
    assert len(fake_model.jobs) == before
    assert generate(client, HIGH).status_code == 200
    assert generate(client, OWN).status_code == 200


STREAM = "/ai/generate-image-stream"
IMAGE = b64encode(make_png()).decode()
SMALL = {"width": 64, "height": 64, "steps": 1}


@pytest.mark.parametrize(
    ("path", "body", "images"),
    [
        (GENERATE, {"input": "a", "parameters": SMALL | {"n_samples": 3}}, 3),
        (STREAM, {"input": "a", "parameters": SMALL | {"n_samples": 3}}, 3),
        ("/v1/images/generations", {"prompt": "a", "size": "512x768", "n": 2}, 2),
        ("/ai/upscale", {"image": IMAGE}, 1),
        ("/ai/augment-image", {"req_type": "lineart", "image": IMAGE, "width": 1, "height": 1}, 1),
        ("/ai/annotate-image", {"model": "canny", "parameters": {"image": IMAGE}}, 1),
    ],
)
def test_every_path_that_makes_images_counts_them(client, path, body, images):
    assert client.post(path, json=body, headers=bearer(TOKEN)).status_code == 200
    assert count_left(client) == 5 - images
    assert generate(client, n_samples=count_left(client)).status_code == 200
    assert client.post(path, json=body, headers=bearer(TOKEN)).status_code == 402
    assert client.post(path, json=body, headers=bearer(OWN)).status_code == 200


def test_a_job_that_fails_costs_nothing(client, fake_model):
    fake_model.failure = RuntimeError("broken")
    assert generate(client, n_samples=4).status_code == 500
    assert count_left(client) == 5
    fake_model.failure = None
    assert generate(client, n_samples=4).status_code == 200
    assert count_left(client) == 1


def test_a_request_that_is_refused_costs_nothing(client):
    assert generate(client, steps=99).status_code == 400
    assert count_left(client) == 5


def test_a_job_that_the_engine_refuses_costs_nothing_and_holds_nothing(model):
    client = TestClient(create_app(build_state(model, FakeModel(), access=RULES)), base_url=BASE_URL)
    assert [generate(client).status_code for _ in range(3)] == [503] * 3  # its engine was never started
    assert count_left(client) == 5


def test_work_that_is_no_job_holds_the_quota_and_is_refunded_if_it_fails(client):
    request = Request({"type": "http", "app": client.app, "account": ANNA})
    with hold_quota(request), pytest.raises(Overloaded):
        hold_quota(request).__enter__()
    assert count_left(client) == 4
    with pytest.raises(ValueError, match="broken"), hold_quota(request, images=2):
        raise ValueError("broken")
    assert count_left(client) == 4
    with hold_quota(Request({"type": "http", "app": client.app})), hold_quota(request):
        pass
    assert count_left(client) == 3


def test_the_log_names_the_account_and_never_its_token(client, caplog):
    caplog.set_level(logging.INFO, "naiad.requests")
    for token in (TOKEN, OWN, "pst-of-another-service"):
        generate(client, token)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].endswith(" ms 'anna'")
    assert [line.endswith(" ms") for line in lines[1:]] == [True, True]
    assert not [line for line in lines if "pst-" in line or "sha256" in line]


def build_request(token, **parameters):
    body = {"input": "a", "parameters": SMALL | parameters}
    return build_post(GENERATE, body, f"Authorization: Bearer {token}")


def test_a_second_request_at_a_time_is_refused_as_nai_refuses_it(model, gate):
    fake_model = FakeModel(gate)
    with serve(build_state(model, fake_model, access=RULES)) as address, ThreadPoolExecutor(2) as threads:
        try:
            first = threads.submit(exchange, address, build_request(TOKEN))
            wait_until(lambda: fake_model.evaluations)
            head, _, content = exchange(address, build_request(TOKEN)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 429 ")
            assert b"\r\nretry-after: 1\r\n" in head  # the engine expects a job as small as this to end soon
            assert json.loads(content) == {
                "statusCode": 429,
                "message": "Concurrent generation is locked: this account may have 1 request at a time; "
                "try again in 1 second",
            }
            others = threads.submit(exchange, address, build_request(HIGH))
            gate.release(2)
            assert b" 200 " in first.result(LIMIT).split(b"\r\n")[0]
            assert b" 200 " in others.result(LIMIT).split(b"\r\n")[0]
            gate.release(1)
            assert b" 200 " in exchange(address, build_request(TOKEN)).split(b"\r\n")[0]
        finally:
            gate.release(10_000)


def read_left(address):
    response = exchange(address, build_get("/user/subscription", f"Authorization: Bearer {TOKEN}"))
    return json.loads(response.partition(b"\r\n\r\n")[2])["trainingStepsLeft"]["fixedTrainingStepsLeft"]


def test_a_client_that_disconnects_gets_its_images_back(model, gate, caplog):
    caplog.set_level(logging.INFO, "naiad.requests")
    fake_model = FakeModel(gate)
    with serve(build_state(model, fake_model, access=RULES)) as address:
        try:
            with socket.create_connection(address) as connection:
                connection.sendall(build_request(TOKEN, steps=50, n_samples=4))
                wait_until(lambda: fake_model.evaluations)
                assert read_left(address) == 1
            wait_until(lambda: f"POST {GENERATE} 499" in caplog.text)  # the server has seen the disconnect
            assert read_left(address) == 5  # though the device is still at its evaluation
            with ThreadPoolExecutor(1) as threads:
                next_one = threads.submit(exchange, address, build_request(TOKEN))
                wait_until(lambda: read_left(address) == 4)  # its only request at a time
                gate.release(10_000)
                assert next_one.result(LIMIT).startswith(b"HTTP/1.1 200 ")
        finally:
            gate.release(10_000)
        assert read_left(address) == 4
    assert len(fake_model.finished) == 1


def test_what_runs_for_a_revoked_token_is_finished(model, gate):
    fake_model, read = FakeModel(gate), [ACCOUNTS]
    access = AccessRules((OWN,), read_accounts=lambda: read[0])
    with serve(build_state(model, fake_model, access=access)) as address, ThreadPoolExecutor(1) as threads:
        try:
            stream = build_request(TOKEN).replace(GENERATE.encode(), f"{GENERATE}-stream".encode())
            first = threads.submit(exchange, address, stream)
            wait_until(lambda: fake_model.evaluations)
            read[0] = Accounts(account=ACCOUNTS.account[1:])
            assert exchange(address, build_request(TOKEN)).startswith(b"HTTP/1.1 401 ")
            gate.release(10_000)
            assert b"final" in first.result(LIMIT)
        finally:
            gate.release(10_000)
    assert len(fake_model.finished) == 1


LONG = {"width": 512, "height": 512, "steps": 50}


def test_jobs_of_accounts_with_a_higher_priority_go_first_and_equal_ones_in_order(model, gate, monkeypatch):
    monkeypatch.setattr(
        Ticket, "find_waited", lambda ticket, now: 0.0
    )  # neither how long this test takes counts
    monkeypatch.setattr(Queue, "learn_speed", lambda *_: None)  # nor that the fake takes no time
    fake_model = FakeModel(gate)
    state = build_state(model, fake_model, access=RULES)
    order = [(LOW, 1), (OWN, 2), (LOW, 3), (HIGH, 4), (OWN, 5), (HIGH, 6)]
    with serve(state) as address, ThreadPoolExecutor(7) as threads:
        try:
            responses = [threads.submit(exchange, address, build_request(TOKEN, seed=9, **LONG))]
            wait_until(lambda: fake_model.evaluations)
            for waiting, (token, seed) in enumerate(order, 1):
                responses.append(threads.submit(exchange, address, build_request(token, seed=seed, **LONG)))
                wait_until(lambda count=waiting: state.engine.waiting == count)
        finally:
            gate.release(10_000)
        assert all(response.result(LIMIT).startswith(b"HTTP/1.1 200 ") for response in responses)
    assert [job.passes[0].seeds[0] for job in fake_model.finished] == [4, 6, 9, 2, 5, 1, 3]


def test_only_jobs_submits_to_the_engine_so_that_no_endpoint_passes_the_quotas():
    found = [
        path.name
        for path in (ROOT / "server" / "api").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "submit" and "engine" in ast.unparse(node.value)
    ]
    assert set(found) == {"jobs.py"}
