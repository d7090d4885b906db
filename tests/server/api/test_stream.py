"""Streamed images: events, errors, and clients that are slow or gone."""

import asyncio
import json
import logging
import os
import socket
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from fake_model import GENERATE, FakeModel, build_state, start_client
from live_server import Clock, build_post, connect, exchange, read_rest, read_until, serve
from PIL import Image
from raw_responses import parse_response
from stream_reader import read_msgpack, read_stream
from waiting import LIMIT, wait_until

from pipelines.errors import DeviceLost, InvalidPrompt, NotFinite
from server.api import stream
from server.api.event_response import EventResponse
from server.api.protocol import PROBE_INTERVAL
from server.engine.engine import Engine
from server.engine.queue import Limits
from server.picture.inspection import check_signatures, inspect

STREAM = "/ai/generate-image-stream"
SMALL = {"width": 64, "height": 64, "steps": 3, "seed": 5}
MEDIA_TYPES = {"msgpack": "application/msgpack", "sse": "text/event-stream"}


def build_body(**parameters):
    return {"input": "a", "parameters": SMALL | parameters}


def build_request(path=STREAM, close=True, **parameters):
    return build_post(path, build_body(**parameters), close=close)


def unzip(content):
    archive = zipfile.ZipFile(BytesIO(content))
    return [archive.read(name) for name in archive.namelist()]


@pytest.mark.parametrize("form", MEDIA_TYPES)
@pytest.mark.parametrize(("image_format", "kind"), [("png", "PNG"), ("webp", "WEBP")])
def test_a_stream_has_previews_and_one_signed_final_a_sample(
    model, gate, signing_key, form, image_format, kind
):
    changes = {"n_samples": 2, "stream": form, "image_format": image_format, "width": 128, "height": 192}
    with serve(build_state(model, FakeModel(gate), signing_key)) as address:
        with connect(address) as connection:
            connection.sendall(build_request(**changes))
            gate.release(1)
            begun = read_until(connection, b"intermediate", times=2)
            gate.release(10_000)
            status, headers, content = parse_response(begun + read_rest(connection))
        files = unzip(parse_response(exchange(address, build_request(GENERATE, **changes)))[2])
    assert status == 200
    assert headers["content-type"] == MEDIA_TYPES[form]
    assert headers["server-timing"].startswith("queue;dur=")
    assert headers["x-request-id"]
    assert "content-length" not in headers
    events = read_stream(content, MEDIA_TYPES[form])
    previews = [event for event in events if event["event_type"] == "intermediate"]
    finals = events[len(previews) :]
    assert [(event["event_type"], event["samp_ix"]) for event in finals] == [("final", 0), ("final", 1)]
    assert len({event["gen_id"] for event in events}) == 1
    assert all(isinstance(event["gen_id"], int) for event in events)
    assert {event["samp_ix"] for event in previews} == {0, 1}
    assert all(0 <= event["step_ix"] < 3 for event in previews)
    assert all(Image.open(BytesIO(event["image"])).format == "JPEG" for event in previews)
    for event, file in zip(finals, files, strict=True):
        final = Image.open(BytesIO(event["image"]))
        assert (final.format, final.size) == (kind, (128, 192))
        assert final.convert("RGB").tobytes() == Image.open(BytesIO(file)).convert("RGB").tobytes()
        checks = check_signatures(inspect(event["image"]), signing_key.public, None)
        assert {check.signer for check in checks} == {"ours"}


def test_a_final_is_the_file_of_the_zip_but_for_the_generation_time(model, monkeypatch):
    monkeypatch.setattr("server.engine.stepper.perf_counter", lambda: 1.0)
    with start_client(build_state(model, FakeModel())) as client:
        body = build_body(n_samples=2)
        files = unzip(client.post(GENERATE, json=body).content)
        events = list(read_msgpack(client.post(STREAM, json=body).content))
    assert [event["image"] for event in events if event["event_type"] == "final"] == files


def test_a_form_is_streamed_too_and_warnings_are_headers(model):
    with start_client(build_state(model, FakeModel())) as client:
        sent = json.dumps(build_body() | {"model": "nai-diffusion-9"})
        response = client.post(STREAM, files={"request": ("blob", sent, "application/json")})
    assert response.status_code == 200
    assert "nai-diffusion-9" in response.headers["x-naiad-warning"]
    assert list(read_msgpack(response.content))[-1]["event_type"] == "final"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"stream": "jsonl"}, "parameters.stream: 'jsonl' is not msgpack or sse"),
        ({"steps": 99}, "parameters.steps: 99 is not"),
        ({"sampler": "k_nothing"}, "parameters.sampler: "),
    ],
)
def test_a_refused_request_is_an_ordinary_error(model, parameters, message):
    with start_client(build_state(model, FakeModel())) as client:
        response = client.post(STREAM, json=build_body(**parameters))
        other = client.post(GENERATE, json=build_body(stream="jsonl"))
    assert response.status_code == 400
    assert response.json()["message"].startswith(message)
    assert other.status_code == 200  # the field means nothing there


def test_a_failure_before_the_first_preview_has_its_own_status(model):
    fake_model = FakeModel()
    fake_model.failure, fake_model.preview = InvalidPrompt("all segments have weight 0"), None
    with start_client(build_state(model, fake_model)) as client:
        response = client.post(STREAM, json=build_body())
    assert response.status_code == 400
    assert response.json() == {"statusCode": 400, "message": "all segments have weight 0"}


@pytest.mark.parametrize("form", MEDIA_TYPES)
@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (
            NotFinite("the network returned latents that are not finite"),
            500,
            "the network returned latents that",
        ),
        (
            RuntimeError("secret text of a library"),
            500,
            "internal server error; the server's log has the details",
        ),
        (DeviceLost("cuda:0"), 503, "the device has failed; restart the server"),
    ],
)
def test_a_failure_after_a_preview_is_an_event_and_the_end(model, gate, form, failure, code, message, caplog):
    caplog.set_level(logging.INFO)
    fake_model = FakeModel(gate)
    fake_model.failure = failure
    with serve(build_state(model, fake_model)) as address, connect(address) as connection:
        connection.sendall(build_request(stream=form))
        gate.release(1)
        begun = read_until(connection, b"intermediate")
        gate.release(10)
        status, headers, body = parse_response(begun + read_rest(connection))
    events = read_stream(body, MEDIA_TYPES[form])
    assert status == 200
    assert events[0]["event_type"] == "intermediate"
    assert (events[-1]["event_type"], events[-1]["code"]) == ("error", code)
    assert events[-1]["message"].startswith(message)
    assert "secret" not in events[-1]["message"]
    logged = [record for record in caplog.records if "ended its stream with" in record.getMessage()]
    assert [record.getMessage().split()[0] for record in logged] == [headers["x-request-id"]]


def test_a_stream_that_waits_is_kept_alive_where_clients_skip_it(model, gate, monkeypatch):
    monkeypatch.setattr(stream, "KEEP_ALIVE", 0.05)
    with (
        serve(build_state(model, FakeModel(gate))) as address,
        connect(address) as sse,
        connect(address) as frames,
    ):
        sse.sendall(build_request(stream="sse"))
        frames.sendall(build_request(stream="msgpack"))
        waited = read_until(sse, b": waiting\n\n", times=3)
        gate.release(10)
        bodies = [parse_response(raw)[2] for raw in (waited + read_rest(sse), read_rest(frames))]
    assert read_stream(bodies[0], "text/event-stream")[-1]["event_type"] == "final"
    assert list(read_msgpack(bodies[1]))[-1]["event_type"] == "final"


@pytest.mark.parametrize("form", MEDIA_TYPES)
def test_a_client_that_hangs_up_frees_the_device_within_one_evaluation(model, gate, form, caplog):
    caplog.set_level(logging.INFO, "naiad.requests")
    fake_model = FakeModel(gate)
    state = build_state(model, fake_model)
    with serve(state) as address, ThreadPoolExecutor(1) as threads:
        with connect(address) as connection:
            connection.sendall(build_request(steps=50, stream=form))
            gate.release(1)
            read_until(connection, b"intermediate")
            wait_until(lambda: len(fake_model.evaluations) == 2)
        wait_until(lambda: f"POST {STREAM} 200" in caplog.text)  # the server has seen the disconnect
        following = threads.submit(exchange, address, build_request(steps=2))
        wait_until(lambda: state.engine.waiting == 1)
        gate.release(1 + 2)  # one evaluation for the abandoned job, two for the following one
        assert following.result(LIMIT).startswith(b"HTTP/1.1 200")
    assert [(job.steps, step) for job, step in fake_model.evaluations] == [(50, 1), (50, 2), (2, 1), (2, 2)]
    assert [job.steps for job in fake_model.finished] == [2]


def test_a_client_that_only_stops_sending_gets_the_rest_of_its_stream(model, gate):
    clock = Clock()
    with serve(build_state(model, FakeModel(gate)), clock=clock) as address, connect(address) as connection:
        connection.sendall(build_request(close=False))
        gate.release(1)
        begun = read_until(connection, b"intermediate")
        connection.shutdown(socket.SHUT_WR)
        for _ in range(3):  # in which the server looks whether the client still reads
            clock.advance(PROBE_INTERVAL)
        gate.release(10)
        status, _, body = parse_response(begun + read_rest(connection))
    assert status == 200
    assert [event["event_type"] for event in read_msgpack(body)][-1] == "final"


def test_a_client_that_leaves_the_queue_is_never_served(model, gate):
    fake_model = FakeModel(gate)
    state = build_state(model, fake_model)
    with serve(state) as address, ThreadPoolExecutor(1) as threads:
        running = threads.submit(exchange, address, build_request(steps=2))
        wait_until(lambda: fake_model.evaluations)
        with connect(address) as connection:
            connection.sendall(build_request(steps=50))
            wait_until(lambda: state.engine.waiting == 1)
        wait_until(lambda: state.engine.waiting == 0)
        gate.release(2)
        assert running.result(LIMIT).startswith(b"HTTP/1.1 200")
    assert [job.steps for job in fake_model.jobs] == [2]


def run_response(response, cancel_after):
    """Send a response and cancel it after some messages, as a server that stops does; return its messages."""
    messages = []

    async def run():
        async def send(message):
            await asyncio.sleep(0)
            messages.append(message)
            if len(messages) == cancel_after:
                task.cancel()
            await asyncio.sleep(0.01)  # the rest of the frame, as a large one takes

        async def receive():
            await asyncio.Event().wait()

        scope = {"type": "http"}
        task = asyncio.ensure_future(response()(scope, receive, send))
        await task

    asyncio.run(run())
    return messages


@pytest.mark.parametrize("cancel_after", [2, 3])
def test_a_server_that_stops_ends_a_stream_with_an_event(cancel_after):
    closed = []

    async def frames():
        try:
            yield b"second"
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    def build():
        return EventResponse(
            b"first", frames(), lambda error: type(error).__name__.encode(), "text/plain", {}
        )

    _, *body = run_response(build, cancel_after)
    sent = [message["body"] for message in body]
    assert sent == [*[b"first", b"second"][: cancel_after - 1], b"CancelledError", b""]
    assert [message["more_body"] for message in body] == [True] * (len(body) - 1) + [False]
    assert closed == [True] or cancel_after == 2


def read_memory():
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_twenty_streams_that_are_not_read_keep_memory_flat(model):
    fake_model = FakeModel()
    fake_model.preview = bytes(128 * 1024)
    engine = Engine(lambda: fake_model, Limits(queue=2 * 8 * 20))
    state = replace(build_state(model, fake_model), engine=engine)
    with serve(state) as address:
        exchange(address, build_request(steps=50, n_samples=8))
        before, connections = read_memory(), []
        for _ in range(20):
            connection = connect(address)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(build_request(steps=50, n_samples=8))
            connections.append(connection)
        wait_until(lambda: len(fake_model.finished) == 21)
        grown = read_memory() - before
        for connection in connections:
            connection.close()
    # all previews of one stream have 50 MiB; its newest ones 1
    assert grown < 20 * 20


def test_the_request_without_a_stream_makes_no_previews(model):
    fake_model = FakeModel()
    asked = []
    begin = fake_model.begin
    fake_model.begin = lambda job, on_preview=None: (asked.append(on_preview), begin(job))[1]
    with start_client(build_state(model, fake_model)) as client:
        assert client.post(GENERATE, json=build_body()).status_code == 200
        assert client.post(STREAM, json=build_body()).status_code == 200
    assert asked[0] is None
    assert asked[1] is not None
