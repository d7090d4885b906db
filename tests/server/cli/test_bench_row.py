"""One row of `naiad bench`, with a model without networks."""

from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
from jobs import make_job
from waiting import wait_until

from pipelines.errors import OutOfMemory
from server.cli.bench_row import Clients, DeviceLog, Row, measure_row
from server.engine.engine import Engine
from server.engine.events import JobBegan, JobEnded, PassTaken
from server.request.resolve import ResolvedRequest


class Counter:
    """A stopwatch of a device that takes a second for everything."""

    def __init__(self):
        self.marks = 0

    def mark(self):
        self.marks += 1
        return float(self.marks)

    def measure(self, marks):
        return [after - before for before, after in pairwise(marks)]


def resolve(size, number):
    job = make_job(width=size[0], height=size[1], steps=3, seeds=(number,))
    return ResolvedRequest(job, "png", {}, ())


@contextmanager
def start(fake_model, log, write=lambda *_: b""):
    """Yield clients of a running engine, and the engine."""
    engine = Engine(lambda: fake_model, on_event=log.observe)
    engine.start()
    try:
        engine.wait_ready()
        yield Clients(engine, resolve, write), engine
    finally:
        engine.stop()


@pytest.fixture
def log():
    stopwatch: Any = Counter()
    return DeviceLog(stopwatch)


def test_a_row_has_what_was_drawn_after_the_warm_up(fake_model, log):
    row, written = Row((64, 96), 2, 5), []
    with start(fake_model, log, lambda request, result: written.append((request, result)) or b"") as (
        clients,
        _,
    ):
        measure_row(row, clients, log)
    assert row.is_complete
    assert row.first is not None
    assert row.first > 0
    assert row.evaluations == 5 * 3
    assert row.evaluations_per_second is not None
    assert row.pictures_per_minute == pytest.approx(60 * 5 / row.wall)
    assert set(row.stages) == {"draw", "png"}
    seeds = [job.passes[0].seeds[0] for job in fake_model.jobs]
    assert sorted(seeds) == list(range(7))  # two of them for the warm-up
    assert {request.job.passes[0].seeds[0] for request, _ in written} == set(seeds)
    assert {result.images[0].shape for _, result in written} == {(96, 64, 3)}


def test_as_many_pictures_are_drawn_at_a_time_as_asked_for(fake_model, log, gate):
    fake_model.gate = gate
    with start(fake_model, log) as (clients, engine):
        pictures = clients.draw((64, 64), 4, 3)
        gate.release()
        gate.release()
        gate.release()  # for the first picture
        next(pictures)
        wait_until(lambda: engine.running + engine.waiting == 3)
        gate.release(9)
        assert len(list(pictures)) == 3


def test_a_row_is_drawn_for_clients_that_the_engine_has_drawn_nothing_for(fake_model, log, monkeypatch):
    seen = []
    with start(fake_model, log) as (clients, engine):
        submit = engine.submit
        monkeypatch.setattr(
            engine, "submit", lambda job, client: seen.append(client) or submit(job, client=client)
        )
        first = len(list(clients.draw((64, 64), 4, 2)))
        list(clients.draw((64, 64), 6, 3))
    assert len(set(seen[:first])) <= 2
    assert not set(seen[:first]) & set(seen[first:])


def test_an_interrupt_leaves_what_was_measured_and_cancels_the_rest(fake_model, log):
    row = Row((64, 64), 1, 100)

    def interrupt():
        if len(row.pictures) == 2:
            raise KeyboardInterrupt

    with start(fake_model, log) as (clients, engine):
        with pytest.raises(KeyboardInterrupt):
            measure_row(row, clients, log, interrupt)
        wait_until(lambda: engine.running + engine.waiting == 0)
        assert len(list(clients.draw((64, 64), 1, 1))) == 1
    assert len(row.pictures) == 2
    assert not row.is_complete
    assert row.seconds is not None
    assert (row.pictures_per_minute, row.stages) == (None, {})  # which would count what others had begun
    assert row.evaluations >= 6
    assert len(fake_model.jobs) < 20


def test_a_failed_picture_ends_the_row(fake_model, log):
    fake_model.failure = OutOfMemory()
    row = Row((64, 64), 2, 4)
    with start(fake_model, log) as (clients, _), pytest.raises(OutOfMemory):
        measure_row(row, clients, log)
    assert (row.first, row.pictures, row.seconds) == (None, [], None)


def test_the_devices_time_is_divided_among_stages(log):
    kind = "generate"
    shared = PassTaken("draw", 3, 6, 0.0)
    events = [
        JobBegan(kind, 0.0),
        PassTaken("encode", 1, 1, 0.0),
        shared,
        shared,
        PassTaken("decode", 1, 1, 0.0),
    ]
    for event in [*events, JobEnded(kind, "done", 1.0, 1, 1)]:
        log.observe(event)
    log.observe(JobBegan(kind, 0.0))  # the second before it had no pass
    log.observe(PassTaken("draw", 1, 2, 0.0))
    assert log.summarize() == (7, {"encode": 1.0, "draw": 3.0, "decode": 1.0})
    log.clear()
    assert log.summarize() == (0, {})
