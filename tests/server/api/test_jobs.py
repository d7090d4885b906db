"""Requests that compete for the device: disconnects, failures and limits, most of them over a socket."""

import asyncio
import json
import logging
import socket
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from threading import Event, Lock

import pytest
from fake_model import GENERATE, FakeModel, build_state
from jobs import make_job
from live_server import Clock, build_get, build_post, exchange, serve
from PIL import Image
from starlette.requests import Request
from waiting import LIMIT, wait_until

from pipelines.errors import DeviceLost
from pipelines.types import Progress
from server.api import generation, upscale
from server.api.active_jobs import ActiveJobs, JobName
from server.api.jobs import Waiter, wait_for_result
from server.engine.engine import Engine, State
from server.engine.queue import Limits
from server.engine.ticket import Result, Ticket
from server.errors import Disconnected

JOB = make_job(64, 64, steps=3)
STEP = Progress(0, 1, 3, 1.0)


def build_generate(**parameters):
    return build_post(GENERATE, {"input": "a", "parameters": {"width": 64, "height": 64} | parameters})


def encode_picture():
    file = BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    return b64encode(file.getvalue()).decode()


def read_status(response):
    return int(response.split(maxsplit=2)[1])


def read_json(response):
    return json.loads(response.partition(b"\r\n\r\n")[2])


def test_a_client_that_disconnects_frees_the_device_within_one_evaluation(model, gate, caplog):
    caplog.set_level(logging.INFO, "naiad.requests")
    fake_model = FakeModel(gate)
    state = build_state(model, fake_model)
    with serve(state) as address, ThreadPoolExecutor(1) as threads:
        try:
            with socket.create_connection(address) as connection:
                connection.sendall(build_generate(steps=50))
                wait_until(lambda: fake_model.evaluations)
            wait_until(lambda: f"POST {GENERATE} 499" in caplog.text)  # the server has seen the disconnect
            following = threads.submit(exchange, address, build_generate(steps=2))
            wait_until(lambda: state.engine.waiting == 1)
            gate.release(1 + 2)  # one evaluation for the abandoned job, two for the following one
            assert read_status(following.result(LIMIT)) == 200
        finally:
            gate.release(10_000)
    assert [(job.steps, step) for job, step in fake_model.evaluations] == [(50, 1), (2, 1), (2, 2)]
    assert [job.steps for job in fake_model.finished] == [2]


def test_a_client_that_disconnects_from_the_queue_is_never_served(model, gate, caplog):
    caplog.set_level(logging.INFO, "naiad.requests")
    fake_model = FakeModel(gate)
    state = build_state(model, fake_model)
    with serve(state) as address, ThreadPoolExecutor(1) as threads:
        try:
            running = threads.submit(exchange, address, build_generate(steps=2))
            wait_until(lambda: fake_model.evaluations)
            with socket.create_connection(address) as connection:
                connection.sendall(build_generate(steps=50))
                wait_until(lambda: state.engine.waiting == 1)
            wait_until(lambda: f"POST {GENERATE} 499" in caplog.text)
            gate.release(2)
            assert read_status(running.result(LIMIT)) == 200
        finally:
            gate.release(10_000)
    assert [job.steps for job in fake_model.jobs] == [2]


def run_wait_for_result(ticket, *messages):
    """Wait for a ticket's result while a client sends these ASGI messages and nothing more; then for its job's end."""
    pending = list(messages)

    async def receive():
        if not pending:
            await asyncio.Event().wait()
        return pending.pop(0)

    async def run():
        jobs = ActiveJobs()
        job = jobs.add(JobName("1", "a"), ticket)
        try:
            return await wait_for_result(Waiter(job, job.join()), Request({"type": "http"}, receive))
        finally:
            await asyncio.sleep(0)
            assert not list(jobs)

    return asyncio.run(run())


def test_a_disconnect_cancels_the_ticket():
    ticket = Ticket(JOB)
    ticket.future.set_running_or_notify_cancel()
    assert not ticket.is_cancelled
    with pytest.raises(Disconnected):
        run_wait_for_result(ticket, {"type": "http.request"}, {"type": "http.disconnect"})
    assert ticket.is_cancelled


def test_a_result_is_returned_without_cancelling_the_ticket():
    ticket = Ticket(JOB)
    result = Result([], (), 0.0, 0.0)
    ticket.future.set_result(result)
    assert run_wait_for_result(ticket) is result
    assert not ticket.is_cancelled


def test_a_job_that_raises_leaves_the_server_serving_the_next(model, gate):
    fake_model = FakeModel(gate)
    fake_model.failure = RuntimeError("CUDA out of memory")
    state = build_state(model, fake_model)
    with serve(state) as address, ThreadPoolExecutor(2) as threads:
        try:
            failing = threads.submit(exchange, address, build_generate(steps=1))
            wait_until(lambda: fake_model.evaluations)
            waiting = threads.submit(exchange, address, build_generate(steps=2))
            wait_until(lambda: state.engine.waiting == 1)
            gate.release(1)
            assert read_status(failing.result(LIMIT)) == 500
            fake_model.failure = None
            gate.release(2)
            assert read_status(waiting.result(LIMIT)) == 200
        finally:
            gate.release(10_000)
        assert read_json(exchange(address, build_get("/ready"))) == {"state": "ready", "waiting": 0}


def test_a_lost_device_answers_503_to_requests_in_flight_and_to_all_later_ones(model, gate):
    fake_model = FakeModel(gate)
    fake_model.failure = DeviceLost("cuda:0: CUDA error: an illegal memory access was encountered")
    state = build_state(model, fake_model)
    with serve(state) as address, ThreadPoolExecutor(3) as threads:
        try:
            responses = [threads.submit(exchange, address, build_generate(steps=1)) for _ in range(3)]
            wait_until(lambda: fake_model.evaluations and state.engine.waiting == 2)
        finally:
            gate.release(10_000)
        received = [response.result(LIMIT) for response in responses]
        received += [exchange(address, build_generate()), exchange(address, build_get("/ready"))]
        assert [read_status(response) for response in received] == [503] * 5
        assert {read_json(response)["message"] for response in received} == {
            "the device has failed; restart the server"
        }
        assert b"CUDA" not in b"".join(received)
        assert state.engine.state is State.DEFUNCT
        assert read_status(exchange(address, build_get("/live"))) == 200
    assert len(fake_model.jobs) == 1


PICTURE = encode_picture()


def count_calls(monkeypatch, modules, name):
    """Return a list that grows by one item with each call of a function from one of the modules."""
    calls, function = [], getattr(modules[0], name)
    for module in modules:
        monkeypatch.setattr(module, name, lambda *args: (calls.append(args), function(*args))[1])
    return calls


class SlowDecoder:
    """Wraps the functions that decode images: each call blocks until `release` is set; counts those that run."""

    def __init__(self):
        self.release, self.lock = Event(), Lock()
        self.running = self.peak = self.calls = 0

    def wrap(self, decode):
        def decode_slowly(*args):
            with self.lock:
                self.running += 1
                self.calls += 1
                self.peak = max(self.peak, self.running)
            assert self.release.wait(LIMIT)
            with self.lock:
                self.running -= 1
            return decode(*args)

        return decode_slowly


@pytest.mark.parametrize("limit", [1, 2])
def test_at_most_decode_limit_requests_decode_images_at_once(model, monkeypatch, limit):
    request = build_post("/ai/upscale", {"image": PICTURE})
    decoder = SlowDecoder()
    received = count_calls(monkeypatch, (generation, upscale), "decode_in_slot")
    monkeypatch.setattr(generation, "resolve", decoder.wrap(generation.resolve))
    monkeypatch.setattr(upscale, "read_upscale", decoder.wrap(upscale.read_upscale))
    state, clock = build_state(model, FakeModel(), decode_limit=limit), Clock()
    with serve(state, clock=clock) as address, ThreadPoolExecutor(4) as threads:
        try:
            sent = [build_generate(image=PICTURE), request] * 2
            responses = [threads.submit(exchange, address, each) for each in sent]
            wait_until(lambda: len(received) == 4 and decoder.running == limit)
            clock.advance(0)  # in which a request over the limit would begin
        finally:
            decoder.release.set()
        assert [read_status(response.result(LIMIT)) for response in responses] == [200] * 4
    assert decoder.peak == limit


def test_a_request_without_images_waits_for_no_slot(model, monkeypatch):
    decoder = SlowDecoder()
    monkeypatch.setattr(upscale, "read_upscale", decoder.wrap(upscale.read_upscale))
    request = build_post("/ai/upscale", {"image": PICTURE})
    with serve(build_state(model, FakeModel())) as address, ThreadPoolExecutor(4) as threads:
        try:
            waiting = [threads.submit(exchange, address, request) for _ in range(4)]
            wait_until(lambda: decoder.running == 2)
            assert read_status(exchange(address, build_generate())) == 200
        finally:
            decoder.release.set()
        assert [read_status(response.result(LIMIT)) for response in waiting] == [200] * 4


def test_a_client_that_disconnects_while_it_waits_for_a_slot_is_not_decoded(model, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "naiad.requests")
    decoder = SlowDecoder()
    received = count_calls(monkeypatch, (upscale,), "decode_in_slot")
    monkeypatch.setattr(upscale, "read_upscale", decoder.wrap(upscale.read_upscale))
    request = build_post("/ai/upscale", {"image": PICTURE})
    with serve(build_state(model, FakeModel(), decode_limit=1)) as address, ThreadPoolExecutor(2) as threads:
        try:
            first = threads.submit(exchange, address, request)
            wait_until(lambda: decoder.running == 1)
            with socket.create_connection(address) as connection:
                connection.sendall(request)
                wait_until(lambda: len(received) == 2)
            wait_until(lambda: "POST /ai/upscale 499" in caplog.text)  # the server has seen the disconnect
            following = threads.submit(exchange, address, request)
            wait_until(lambda: len(received) == 3)
        finally:
            decoder.release.set()
        assert [read_status(each.result(LIMIT)) for each in (first, following)] == [200, 200]
    assert decoder.calls == 2


def test_two_requests_decode_images_at_once_by_default(model):
    assert build_state(model, FakeModel()).decode_limit == 2


def test_images_are_not_decoded_if_the_job_would_not_be_accepted(model, gate, monkeypatch):
    fake_model = FakeModel(gate)
    engine = Engine(lambda: fake_model, Limits(queue=1))
    state = replace(build_state(model, fake_model), engine=engine)
    with serve(state) as address, ThreadPoolExecutor(2) as threads:
        try:
            running = threads.submit(exchange, address, build_generate(steps=1))
            wait_until(lambda: fake_model.evaluations)
            waiting = threads.submit(exchange, address, build_generate(steps=1))
            wait_until(lambda: engine.waiting == 1)
            monkeypatch.setattr(generation, "resolve", None)  # calling it would be a 500
            refused = exchange(address, build_generate())
            assert read_status(refused) == 429
            assert b"retry-after: " in refused
        finally:
            gate.release(10_000)
        assert [read_status(response.result(LIMIT)) for response in (running, waiting)] == [200, 200]
