"""Clients that compete for the device, and that are slow."""

import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import ceil
from threading import Event

from fake_model import GENERATE, FakeModel, build_state
from live_server import build_get, build_post, connect, exchange, read_rest, serve
from raw_responses import find_header, parse_json
from waiting import LIMIT, wait_until

from server.api import generation
from server.api.access import AccessRules
from server.api.accounts import Account, Accounts
from server.api.credentials import generate_token, hash_token
from server.engine.engine import Engine
from server.engine.queue import Limits

MANY, ONE = generate_token(), generate_token()
RULES = AccessRules(
    read_accounts=lambda: Accounts(
        account=(
            Account(name="many", token_hash=(hash_token(MANY),)),
            Account(name="one", token_hash=(hash_token(ONE),)),
        )
    )
)


def build_generate(*headers, token=None, **parameters):
    body = {"input": "a", "parameters": {"width": 64, "height": 64, "seed": 1} | parameters}
    bearer = () if token is None else (f"Authorization: Bearer {token}",)
    return build_post(GENERATE, body, *headers, *bearer)


def test_a_full_queue_is_refused_while_the_device_is_busy_with_when_to_try_again(model, gate):
    fake_model = FakeModel(gate)
    engine = Engine(lambda: fake_model, Limits(queue=1))
    state = replace(build_state(model, fake_model), engine=engine)
    long = {"width": 512, "height": 512, "steps": 50}
    with serve(state) as address, ThreadPoolExecutor(2) as threads:
        try:
            running = threads.submit(exchange, address, build_generate(**long))
            wait_until(lambda: fake_model.evaluations)
            waiting = threads.submit(exchange, address, build_generate(**long))
            wait_until(lambda: engine.waiting == 1)
            refused = exchange(address, build_generate(**long))  # answered though no step of the device ends
            first_end = min(forecast.end for forecast in engine.forecast())
            assert len(fake_model.evaluations) == 1
        finally:
            gate.release(10_000)
        assert all(each.result(LIMIT).startswith(b"HTTP/1.1 200") for each in (running, waiting))
    seconds = ceil(first_end)
    assert seconds > 1  # as a job of this size is expected to take
    assert find_header(refused, "retry-after") == str(seconds)
    status, answer = parse_json(refused)
    assert status == 429
    assert answer["message"] == (
        f"the queue has no room for another image: 1 of 1 wait; try again in {seconds} seconds"
    )


def test_a_client_that_does_not_read_its_images_keeps_no_other_from_the_device(model):
    fake_model = FakeModel()
    with serve(build_state(model, fake_model)) as address, connect(address) as unread:
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        unread.sendall(build_generate(width=512, height=512, n_samples=8, steps=1))  # 6 MB of noise
        wait_until(lambda: fake_model.finished)
        for _ in range(3):
            assert exchange(address, build_generate(steps=1)).startswith(b"HTTP/1.1 200")
        assert len(read_rest(unread)) > 4 << 20  # and it still gets them


def test_one_request_comes_soon_amid_a_hundred_of_another_client(model, gate):
    fake_model = FakeModel(gate)
    state = build_state(model, fake_model, access=RULES)
    with serve(state) as address, ThreadPoolExecutor(1) as threads:
        connections = [connect(address) for _ in range(100)]
        try:
            for connection in connections:
                connection.sendall(build_generate(token=MANY, steps=1))
            share = state.engine._limits.share
            wait_until(lambda: fake_model.evaluations and state.engine.waiting == share)
            one = threads.submit(exchange, address, build_generate(token=ONE, steps=1, seed=7))
            wait_until(lambda: state.engine.waiting == share + 1)
        finally:
            gate.release(10_000)
        assert one.result(LIMIT).startswith(b"HTTP/1.1 200")
        answers = [read_rest(connection) for connection in connections]
        for connection in connections:
            connection.close()
    statuses = [int(answer.split(maxsplit=2)[1]) for answer in answers]
    assert (statuses.count(200), statuses.count(429)) == (1 + share, 100 - 1 - share)
    order = [job.passes[0].seeds[0] for job in fake_model.finished]
    assert order.index(7) <= 1  # right after the one that ran


def test_a_client_that_leaves_while_its_files_are_made_is_sent_none_and_holds_up_no_other(
    model, monkeypatch, caplog
):
    caplog.set_level("INFO", "naiad.requests")
    write, begun, release = generation.write_job_picture, [], Event()

    def write_slowly(metadata, resolved, result, index, described):
        if resolved.job.passes[0].seeds[0] == 1:
            begun.append(index)
            assert release.wait(LIMIT)
        return write(metadata, resolved, result, index, described)

    monkeypatch.setattr(generation, "write_job_picture", write_slowly)
    with serve(build_state(model, FakeModel())) as address:
        try:
            with connect(address) as connection:
                connection.sendall(build_generate(steps=1))
                wait_until(lambda: begun)
            wait_until(lambda: f"POST {GENERATE} 499" in caplog.text)  # the server has seen the disconnect
            assert exchange(address, build_generate(steps=1, seed=2)).startswith(b"HTTP/1.1 200")
        finally:
            release.set()


def test_the_server_answers_while_the_device_is_busy(model, gate):
    fake_model = FakeModel(gate)
    with serve(build_state(model, fake_model)) as address, ThreadPoolExecutor(1) as threads:
        try:
            running = threads.submit(exchange, address, build_generate(steps=2))
            wait_until(lambda: fake_model.evaluations)
            for path in ("/live", "/ready", "/metrics", "/queue", "/models", "/", "/docs"):
                assert exchange(address, build_get(path)).startswith(b"HTTP/1.1 200"), path
            assert len(fake_model.evaluations) == 1
        finally:
            gate.release(10_000)
        assert running.result(LIMIT).startswith(b"HTTP/1.1 200")
