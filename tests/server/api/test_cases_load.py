"""Cases 48 to 54: clients that compete for the device, that leave, and that are slow.

Those that other tests cover exactly are listed in `ELSEWHERE`.
"""

import ast
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import ceil
from threading import Event

import pytest
from fake_model import GENERATE, FakeModel, build_state
from live_server import build_get, build_post, connect, exchange, read_rest, serve
from paths import ROOT
from raw_responses import find_header, parse_json
from waiting import LIMIT, wait_until

from server.api import generation
from server.api.access import AccessRules
from server.api.accounts import Account, Accounts
from server.api.credentials import generate_token, hash_token
from server.engine.engine import Engine
from server.engine.queue import Limits

ELSEWHERE = {
    49: ("test_jobs.py", "test_a_client_that_disconnects_from_the_queue_is_never_served"),
    50: ("test_jobs.py", "test_a_client_that_disconnects_frees_the_device_within_one_evaluation"),
    "50 streams": ("test_stream.py", "test_a_client_that_hangs_up_frees_the_device_within_one_evaluation"),
    "50 kept": ("test_deadline.py", "test_the_requests_of_clients_that_hang_up_are_carried_out"),
    "51 streams": ("test_stream.py", "test_twenty_streams_that_are_not_read_keep_memory_flat"),
    "51 dropped": ("test_protocol.py", "test_a_client_that_takes_no_response_is_dropped_with_its_memory"),
    53: ("test_job_list.py", "test_a_job_that_has_ended_is_a_conflict_and_any_other_name_is_not_found"),
}
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


@pytest.mark.parametrize("case", ELSEWHERE, ids=str)
def test_the_other_cases_have_tests(case):
    file, name = ELSEWHERE[case]
    tree = ast.parse((ROOT / "tests" / "server" / "api" / file).read_text("utf-8"))
    assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def test_48_a_full_queue_is_refused_while_the_device_is_busy_with_when_to_try_again(model, gate):
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


def test_51_a_client_that_does_not_read_its_images_keeps_no_other_from_the_device(model):
    fake_model = FakeModel()
    with serve(build_state(model, fake_model)) as address, connect(address) as unread:
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        unread.sendall(build_generate(width=512, height=512, n_samples=8, steps=1))  # 6 MB of noise
        wait_until(lambda: fake_model.finished)
        for _ in range(3):
            assert exchange(address, build_generate(steps=1)).startswith(b"HTTP/1.1 200")
        assert len(read_rest(unread)) > 4 << 20  # and it still gets them


def test_52_one_request_comes_soon_amid_a_hundred_of_another_client(model, gate):
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

    def write_slowly(metadata, resolved, result, index):
        if resolved.job.passes[0].seeds[0] == 1:
            begun.append(index)
            assert release.wait(LIMIT)
        return write(metadata, resolved, result, index)

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


def test_54_the_server_answers_while_the_device_is_busy(model, gate):
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
