"""Requests that are sent again: they wait for the job of the first attempt, which is drawn and counted once."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from zipfile import ZipFile

import pytest
from fake_model import GENERATE, FakeModel, build_state
from live_server import build_get, build_post, connect, exchange, read_rest, read_until, serve
from raw_responses import find_header, parse_json, parse_response
from stream_reader import read_msgpack
from waiting import LIMIT, wait_until

from server.api.access import AccessRules
from server.api.accounts import Account, Accounts
from server.api.active_jobs import ActiveJob
from server.api.credentials import generate_token, hash_token
from server.api.retries import digest_body
from server.engine.engine import Engine
from server.engine.queue import Limits

ANNA, BEN = generate_token(), generate_token()
ACCOUNTS = Accounts(
    account=(
        Account(name="anna", token_hash=(hash_token(ANNA),), limit=5, concurrency=1),
        Account(name="ben", token_hash=(hash_token(BEN),)),
    )
)
RULES = AccessRules(read_accounts=lambda: ACCOUNTS)
STREAM = f"{GENERATE}-stream"


def build_generate(token=ANNA, name: str | None = "k3Xw9a", path=GENERATE, **parameters):
    """A request without a seed, so that the server picks one: only the same job gives the same images."""
    headers = [f"Authorization: Bearer {token}", *([f"X-Correlation-Id: {name}"] if name else [])]
    return build_post(path, {"input": "a", "parameters": {"width": 64, "height": 64} | parameters}, *headers)


@contextmanager
def run(model, gate, first):
    """Send a request, and yield a function that sends others; which of them got a job is in `fake_model.jobs`."""
    fake_model = FakeModel(gate)
    state = build_state(model, fake_model, access=RULES)
    with serve(state) as address, ThreadPoolExecutor(8) as threads:
        try:
            response = threads.submit(exchange, address, first)
            wait_until(lambda: fake_model.evaluations)
            yield address, fake_model, lambda request: threads.submit(exchange, address, request), response
        finally:
            gate.release(10_000)


def count_jobs(address, token):
    return len(
        parse_json(exchange(address, build_get("/queue", f"Authorization: Bearer {token}")))[1]["jobs"]
    )


def unzip(response):
    with ZipFile(BytesIO(response.partition(b"\r\n\r\n")[2])) as archive:
        return [archive.read(name) for name in archive.namelist()]


def wait_for_waiters(monkeypatch):
    """Return a list that grows with each request that begins to wait for a job."""
    joined, join = [], ActiveJob.join
    monkeypatch.setattr(ActiveJob, "join", lambda job: (joined.append(job), join(job))[1])
    return joined


def test_a_retry_gets_the_files_of_the_first_attempt(model, gate, monkeypatch):
    joined = wait_for_waiters(monkeypatch)
    request = build_generate(n_samples=2, steps=3)
    with run(model, gate, request) as (address, fake_model, send, first):
        second = send(request)  # though the account may have one request at a time
        wait_until(lambda: len(joined) == 2)
        gate.release(10_000)
        responses = first.result(LIMIT), second.result(LIMIT)
        _, page = parse_json(
            exchange(address, build_get("/user/subscription", f"Authorization: Bearer {ANNA}"))
        )
    assert [response.startswith(b"HTTP/1.1 200") for response in responses] == [True, True]
    assert unzip(responses[0]) == unzip(responses[1])
    assert len({find_header(response, "x-job-id") for response in responses}) == 1
    assert len({find_header(response, "x-request-id") for response in responses}) == 2
    assert len(fake_model.jobs) == 1
    assert page["trainingStepsLeft"]["fixedTrainingStepsLeft"] == 5 - 2


def test_the_job_goes_on_as_long_as_one_of_both_waits(model, gate, monkeypatch, caplog):
    caplog.set_level("INFO", "naiad.requests")
    joined = wait_for_waiters(monkeypatch)
    request = build_generate(steps=3)
    fake_model = FakeModel(gate)
    with serve(build_state(model, fake_model, access=RULES)) as address, ThreadPoolExecutor(1) as threads:
        with connect(address) as lost:
            lost.sendall(request)
            wait_until(lambda: fake_model.evaluations)
            second = threads.submit(exchange, address, request)
            wait_until(lambda: len(joined) == 2)
        wait_until(lambda: f"POST {GENERATE} 499" in caplog.text)  # the server has seen the disconnect
        gate.release(10_000)
        assert second.result(LIMIT).startswith(b"HTTP/1.1 200")
    assert [step for _, step in fake_model.evaluations] == [1, 2, 3]


def test_a_stream_that_is_sent_again_has_previews_and_the_final(model, gate, monkeypatch):
    joined = wait_for_waiters(monkeypatch)
    request = build_generate(path=STREAM, steps=3)
    with run(model, gate, request) as (address, fake_model, _, first), connect(address) as connection:
        connection.sendall(request)
        wait_until(lambda: len(joined) == 2)
        gate.release(1)
        begun = read_until(connection, b"intermediate")
        gate.release(10_000)
        bodies = [parse_response(raw)[2] for raw in (first.result(LIMIT), begun + read_rest(connection))]
    finals = [[e["image"] for e in read_msgpack(body) if e["event_type"] == "final"] for body in bodies]
    assert finals[0] == finals[1]
    assert len(fake_model.jobs) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 7},
        {"name": "other1"},
        {"token": BEN},
        {"token": BEN, "name": None},
        {"path": STREAM},
    ],
    ids=" and ".join,  # a token would differ between processes
)
def test_another_body_token_path_or_name_is_another_job(model, gate, other):
    rules = AccessRules(
        read_accounts=lambda: Accounts(
            account=tuple(each.model_copy(update={"concurrency": None}) for each in ACCOUNTS.account)
        )
    )
    fake_model = FakeModel(gate)
    with serve(build_state(model, fake_model, access=rules)) as address, ThreadPoolExecutor(2) as threads:
        try:
            first = threads.submit(exchange, address, build_generate())
            wait_until(lambda: fake_model.evaluations)
            second = threads.submit(exchange, address, build_generate(**other))
            wait_until(lambda: count_jobs(address, ANNA) + count_jobs(address, BEN) == 2)
        finally:
            gate.release(10_000)
        assert [each.result(LIMIT).startswith(b"HTTP/1.1 200") for each in (first, second)] == [True, True]
    assert len(fake_model.finished) == 2


def test_requests_without_a_name_are_never_retries(model, gate):
    request = build_generate(BEN, name=None)
    with run(model, gate, request) as (address, fake_model, send, first):
        second = send(request)
        wait_until(lambda: count_jobs(address, BEN) == 2)
        gate.release(10_000)
        for each in (first, second):
            each.result(LIMIT)
    assert len(fake_model.jobs) == 2


def test_what_has_ended_is_drawn_again(model, gate):
    gate.release(10_000)
    with run(model, gate, build_generate()) as (_, fake_model, send, first):
        assert first.result(LIMIT).startswith(b"HTTP/1.1 200")
        assert send(build_generate()).result(LIMIT).startswith(b"HTTP/1.1 200")
    assert len(fake_model.jobs) == 2


def test_a_name_that_is_used_again_does_not_pass_the_limit_of_the_account(model, gate):
    with run(model, gate, build_generate()) as (_, fake_model, send, _first):
        refused = send(build_generate(seed=7)).result(LIMIT)
        assert parse_json(refused)[0] == 429
    assert len(fake_model.jobs) == 1


def test_a_full_queue_has_room_for_a_retry(model, gate, monkeypatch):
    joined = wait_for_waiters(monkeypatch)
    fake_model = FakeModel(gate)
    engine = Engine(lambda: fake_model, Limits(queue=1))
    state = replace(build_state(model, fake_model), engine=engine)
    with serve(state) as address, ThreadPoolExecutor(3) as threads:
        try:
            responses = [threads.submit(exchange, address, build_generate(name=None))]
            wait_until(lambda: fake_model.evaluations)
            responses.append(threads.submit(exchange, address, build_generate()))
            wait_until(lambda: engine.waiting == 1)
            assert parse_json(exchange(address, build_generate(name="other1")))[0] == 429
            responses.append(threads.submit(exchange, address, build_generate()))
            wait_until(lambda: len(joined) == 3)
        finally:
            gate.release(10_000)
        assert all(each.result(LIMIT).startswith(b"HTTP/1.1 200") for each in responses)
    assert len(fake_model.jobs) == 2


def test_a_body_has_the_same_digest_whatever_the_order_of_its_keys():
    body = {
        "input": "a",
        "parameters": {"width": 64, "image": b"\x89PNG", "list": [1, None, True, "é\ud800"]},
    }
    turned = json.loads(json.dumps({"z": 1} | {"input": "a"}))
    assert digest_body(body) == digest_body(
        {"parameters": dict(reversed(body["parameters"].items())), "input": "a"}
    )
    assert digest_body(turned) == digest_body({"input": "a", "z": 1})


DIFFERENT = [
    {}, [], "", b"", None, 0, False, {"a": 1}, {"a": True}, {"a": 1.0}, {"a": "1"}, {"a": b"1"}, {"a": [1]},
    {"a": [[1]]}, {"a": [1, 2]}, {"a": [2, 1]}, {"a": ["1", "2"]}, {"a": ["12"]}, {"a": ["12", ""]}, {"a": {"b": 1}},
    {"a": {}, "b": 1}, {"a": "b", "c": "d"}, {"a": "d", "c": "b"}, {"a": "x" * (2 << 20)}, {"a": "x" * (2 << 20) + "y"},
]  # fmt: skip


def test_different_bodies_have_different_digests():
    assert len({digest_body(body) for body in DIFFERENT}) == len(DIFFERENT)


def test_a_deeply_nested_body_is_read():
    body = []
    for _ in range(10_000):
        body = [body]
    assert digest_body(body) != digest_body([body])
