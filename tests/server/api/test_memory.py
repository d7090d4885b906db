"""What requests hold in memory, and that a request which waits holds nothing of its body."""

import tracemalloc
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from threading import Semaphore

import pytest
from fake_model import GENERATE, FakeModel, build_state
from jobs import make_job
from live_server import build_post, exchange, serve, serve_app
from PIL import Image
from waiting import LIMIT, wait_until

from pipelines.job import InitImage, RgbImage, UpscaleJob
from server.api.memory import MIB, Memory, measure_work, memory_for_bodies
from server.app import create_app
from server.errors import Overloaded


def test_reservations_share_one_limit():
    memory = Memory(10)
    with memory.reserve() as first, memory.reserve() as second:
        first.resize(6)
        second.resize(4)
        with pytest.raises(Overloaded, match=r"api\.memory_limit"):
            second.resize(5)
        assert memory.held == 10
        first.resize(5)
        second.resize(5)
        first.hold(20)
        second.resize(1)  # less than before is always allowed
        assert memory.held == 21
        with pytest.raises(Overloaded):
            second.resize(2)
    assert memory.held == 0


def test_the_default_is_enough_for_many_bodies():
    assert memory_for_bodies(4096, 64, 64) > 30 * 64
    assert memory_for_bodies(2048, 64, 64) >= 3 * 64
    assert memory_for_bodies(2048, 1024, 0) < 0


def test_a_job_holds_the_images_it_starts_from():
    image = RgbImage(8, 8, bytes(192))
    assert measure_work(make_job(64, 64)) == 0
    assert measure_work(make_job(8, 8, init=InitImage(image, b"\xff"))) == 193
    assert measure_work(make_job(8, 8, init=InitImage(image))) == 192
    assert measure_work(UpscaleJob(image, 16, 16)) == 192


def build_img2img(size, side=64):
    """Return a request with an image and `size` characters next to it."""
    file = BytesIO()
    Image.new("RGB", (side, side)).save(file, "PNG")
    parameters = {"width": side, "height": side, "steps": 1, "image": b64encode(file.getvalue()).decode()}
    body = {"input": "a", "action": "img2img", "parameters": parameters, "junk": "A" * size}
    return build_post(GENERATE, body)


def test_a_request_that_waits_does_not_keep_its_body(model):
    gate = Semaphore(0)
    state = build_state(model, FakeModel(gate))
    request = build_img2img(20 * MIB)
    with serve(state) as address, ThreadPoolExecutor(3) as threads:
        tracemalloc.start()
        try:
            waiting = [threads.submit(exchange, address, request) for _ in range(3)]
            wait_until(lambda: state.engine.waiting == 2)
            wait_until(lambda: tracemalloc.get_traced_memory()[0] < 20 * MIB)
        finally:
            tracemalloc.stop()
            gate.release(100)
        assert all(each.result(LIMIT).startswith(b"HTTP/1.1 200") for each in waiting)


def test_jobs_that_wait_hold_at_most_the_memory_that_is_allowed(model, monkeypatch, gate):
    monkeypatch.setattr("server.api.state.memory_for_bodies", lambda *_: 2)
    state = build_state(model, FakeModel(gate))
    app, request = create_app(state), build_img2img(1000, side=512)  # 768 KiB once it is decoded
    with serve_app(app) as address, ThreadPoolExecutor(3) as threads:
        state.engine.wait_ready()
        waiting = [threads.submit(exchange, address, request)]
        wait_until(lambda: state.engine.forecast() and not state.engine.waiting)
        waiting.append(threads.submit(exchange, address, request))
        wait_until(lambda: state.engine.waiting == 1)
        assert exchange(address, request).startswith(b"HTTP/1.1 429")
        assert 2 * 3 * 512**2 <= app.state.capacity.memory.held <= 2 * MIB
        gate.release(100)
        assert all(each.result(LIMIT).startswith(b"HTTP/1.1 200") for each in waiting)
    assert app.state.capacity.memory.held == 0


def test_a_body_for_which_there_is_no_memory_is_refused_and_the_next_one_is_not(model, monkeypatch):
    monkeypatch.setattr("server.api.state.memory_for_bodies", lambda *_: 1)
    with serve(build_state(model, FakeModel())) as address:
        refused = exchange(address, build_img2img(2 * MIB))
        assert refused.startswith(b"HTTP/1.1 429")
        assert b"retry-after: " in refused
        assert exchange(address, build_img2img(MIB // 2)).startswith(b"HTTP/1.1 200")
