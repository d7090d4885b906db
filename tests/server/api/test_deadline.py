"""Requests with a deadline, and those whose client hangs up while the server carries requests out."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_model import GENERATE, FakeModel, build_state
from live_server import Clock, build_get, build_post, connect, exchange, read_rest, read_until, serve
from raw_responses import find_header, parse_json
from starlette.requests import Request
from waiting import LIMIT, wait_until

from server.api.deadline import read_deadline
from server.app import create_app
from server.engine.ticket import measure

STREAM = f"{GENERATE}-stream"


def build_generate(*headers, path=GENERATE, **parameters):
    body = {"input": "a", "parameters": {"width": 64, "height": 64, "seed": 1} | parameters}
    return build_post(path, body, *headers)


def read(model, limit, *prefer):
    """The seconds and the source of a request's deadline."""
    app = create_app(build_state(model, FakeModel(), deadline=limit))
    headers = [(b"prefer", value.encode()) for value in prefer]
    found = read_deadline(Request({"type": "http", "app": app, "headers": headers, "arrived": 100.0}))
    assert found is None or found.at == 100.0 + found.seconds
    return None if found is None else (found.seconds, found.source)


@pytest.mark.parametrize(
    ("limit", "prefer", "seconds"),
    [
        (0, [], None), (60, [], 60), (0, ["wait=30"], 30), (60, ["wait=30"], 30), (60, ["wait=90"], 60),
        (0.5, ["wait=1"], 0.5), (0, ["wait=0"], 0), (0, ["respond-async, wait=10"], 10), (0, ["wait=10; a=b"], 10),
        (0, ["handling=lenient", "WAIT = \"7\""], 7), (0, ["wait=5, wait=9"], 5), (0, ["await=5"], None),
        (0, ["wait=-5"], None), (0, ["wait=soon"], None), (0, ["wait=1.5"], None), (0, ["wait=" + "9" * 99], None),
        (60, ["wait"], 60),
    ],
)  # fmt: skip
def test_a_client_may_shorten_the_servers_limit_and_never_lengthen_it(model, limit, prefer, seconds):
    found = read(model, limit, *prefer)
    assert (None if found is None else found[0]) == seconds
    if found is not None:
        assert found[1] == (
            "setting engine.deadline" if limit and seconds == limit else f"Prefer: wait={seconds}"
        )


def test_a_job_that_waits_beyond_its_deadline_never_runs(model, gate, monkeypatch):
    fake_model, clock = FakeModel(gate), Clock()
    state = build_state(model, fake_model)
    with serve(state, clock=clock) as address, ThreadPoolExecutor(2) as threads:
        try:
            running = threads.submit(exchange, address, build_generate(steps=2))
            wait_until(lambda: fake_model.evaluations)
            waiting = threads.submit(exchange, address, build_generate("Prefer: wait=30", steps=9))
            wait_until(lambda: state.engine.waiting == 1)
            clock.advance(29)
            assert state.engine.waiting == 1
            (job,) = fake_model.jobs
            monkeypatch.setattr(state.engine._queue, "_speed", 33.5 / measure(job))  # learned of other jobs
            clock.advance(1.5)
            response = waiting.result(LIMIT)
            assert parse_json(response) == (
                503,
                {
                    "statusCode": 503,
                    "message": "not finished within 30 seconds (Prefer: wait=30); "
                    "try again later, or with fewer steps, images or pixels",
                },
            )
            assert find_header(response, "retry-after") == "34"  # when the one that runs ends
            assert state.engine.waiting == 0
        finally:
            gate.release(10_000)
        assert running.result(LIMIT).startswith(b"HTTP/1.1 200")
    assert [job.steps for job in fake_model.jobs] == [2]


def test_a_running_job_stops_at_the_deadline_and_the_next_begins(model, gate):
    fake_model, clock = FakeModel(gate), Clock()
    state = build_state(model, fake_model, deadline=20)
    with serve(state, clock=clock) as address, ThreadPoolExecutor(1) as threads:
        with connect(address) as connection:
            connection.sendall(build_generate(path=STREAM, steps=50))
            gate.release(1)
            read_until(connection, b"intermediate")
            wait_until(lambda: len(fake_model.evaluations) == 2)
            clock.advance(21)
            assert b"not finished within 20 seconds (setting engine.deadline)" in read_rest(connection)
        following = threads.submit(exchange, address, build_generate(steps=1))
        wait_until(lambda: state.engine.waiting == 1)
        gate.release(2)  # one evaluation for the job that is dropped
        assert following.result(LIMIT).startswith(b"HTTP/1.1 200")
    assert [(job.steps, step) for job, step in fake_model.evaluations] == [(50, 1), (50, 2), (1, 1)]


def test_a_job_is_not_in_its_own_way_when_it_is_tried_again(model, gate):
    fake_model, clock = FakeModel(gate), Clock()
    with serve(build_state(model, fake_model), clock=clock) as address, ThreadPoolExecutor(1) as threads:
        try:
            running = threads.submit(exchange, address, build_generate("Prefer: wait=30", steps=9))
            wait_until(lambda: fake_model.evaluations)
            clock.advance(31)
            assert find_header(running.result(LIMIT), "retry-after") == "10"  # as if nothing were known
        finally:
            gate.release(10_000)


def test_a_deadline_that_is_kept_changes_nothing(model):
    clock = Clock()
    with serve(build_state(model, FakeModel(), deadline=20), clock=clock) as address:
        for _ in range(3):
            assert exchange(address, build_generate(steps=1)).startswith(b"HTTP/1.1 200")
            clock.advance(30)


def test_each_attempt_has_its_own_deadline(model, gate):
    fake_model, clock = FakeModel(gate), Clock()
    with (
        serve(build_state(model, fake_model), clock=clock) as address,
        ThreadPoolExecutor(2) as threads,
    ):
        try:
            first = threads.submit(exchange, address, build_generate("X-Correlation-Id: a", steps=2))
            wait_until(lambda: fake_model.evaluations)
            retry = build_generate("X-Correlation-Id: a", "Prefer: wait=10", steps=2)
            second = threads.submit(exchange, address, retry)
            wait_until(lambda: (clock.advance(11), second.done())[1])
            assert parse_json(second.result(LIMIT))[0] == 503
        finally:
            gate.release(10_000)
        assert first.result(LIMIT).startswith(b"HTTP/1.1 200")
    assert len(fake_model.finished) == 1


@pytest.mark.parametrize("path", [GENERATE, STREAM])
def test_the_requests_of_clients_that_hang_up_are_carried_out(model, gate, path, caplog):
    caplog.set_level("INFO", "naiad.requests")
    fake_model = FakeModel(gate)
    state = build_state(model, fake_model, on_disconnect="finish")
    with serve(state) as address:
        try:
            with connect(address) as running, connect(address) as waiting:
                running.sendall(build_generate(path=path, steps=2))
                wait_until(lambda: fake_model.evaluations)
                waiting.sendall(build_generate(path=path, steps=3))
                wait_until(lambda: state.engine.waiting == 1)
            exchange(address, build_get("/live"))  # so the server has seen what came before: both have gone
        finally:
            gate.release(10_000)
        wait_until(lambda: caplog.text.count(f"POST {path} 200") == 2)
    assert sorted(job.steps for job in fake_model.finished) == [2, 3]


def test_a_body_that_does_not_arrive_is_given_up_all_the_same(model, caplog):
    caplog.set_level("INFO", "naiad.requests")
    with serve(build_state(model, FakeModel(), on_disconnect="finish")) as address:
        with connect(address) as connection:
            connection.sendall(build_generate()[:-10])
        wait_until(lambda: f"POST {GENERATE} 400" in caplog.text)
