"""The engine with a fake model: queue, states, cancellation and failures."""

import threading
from threading import Event, Semaphore

import numpy as np
import pytest
from fake_model import FakeModel
from faults import Faulty, Hang
from jobs import make_job
from waiting import LIMIT, wait_until

from pipelines.errors import Cancelled, DeviceLost, UnusableSetting, WeightsError
from server.config.toml import ConfigError
from server.engine.engine import Engine, State
from server.engine.queue import Limits
from server.engine.watchdog import WEIGHTS
from server.errors import Overloaded, Unavailable

JOB = make_job(64, 64, steps=3)


@pytest.fixture
def start():
    """Start engines, and stop them after the test."""
    engines = []

    def start(load, **options):
        engine = Engine(load, **options)
        engines.append(engine)
        engine.start()
        return engine

    yield start
    for engine in engines:
        stop(engine)


@pytest.fixture
def start_busy(start):
    """Start an engine whose device is busy with a job until a gate is released; no other job waits."""

    def start_busy(queue, client=""):
        gate = Semaphore(0)
        engine = start(lambda: FakeModel(gate), limits=Limits(queue=queue))
        engine.wait_ready()
        running = engine.submit(JOB, client=client)
        wait_until(lambda: engine.waiting == 0)
        return engine, gate, running

    return start_busy


def stop(engine):
    stopping = threading.Thread(target=engine.stop, daemon=True)
    stopping.start()
    stopping.join(LIMIT)
    assert not stopping.is_alive()


def test_a_job_returns_its_images_and_leaves_the_engine_ready(start):
    engine = start(FakeModel)
    engine.wait_ready()
    result = engine.submit(JOB).future.result(LIMIT)
    assert np.array_equal(result.images[0], FakeModel().run(JOB, lambda step: None).images[0])
    assert result.run_seconds >= 0
    assert engine.state is State.READY


def test_the_next_job_is_prepared_while_another_one_runs(start):
    gate = Semaphore(0)
    model = FakeModel(gate)
    engine = start(lambda: model)
    engine.wait_ready()
    running = engine.submit(JOB)
    wait_until(lambda: model.evaluations)
    second, third = make_job(64, 64, steps=1, seeds=(2,)), make_job(64, 64, steps=1, seeds=(3,))
    tickets = [engine.submit(job) for job in (second, third)]
    assert second in model.prepared
    assert third not in model.prepared
    gate.release(10)
    for ticket in (running, *tickets):
        ticket.future.result(LIMIT)
    assert model.prepared[-1] == third


def test_the_next_job_is_prepared_only_once_the_running_one_has_begun(start):
    gate, events = Semaphore(0), []

    class RecordingModel(FakeModel):
        def prepare(self, job):
            events.append(("prepare", job.steps))

        def begin(self, job, on_preview=None):
            events.append(("run", job.steps))
            engine.submit(make_job(64, 64, steps=9)).cancel()  # what comes meanwhile is not prepared either
            return super().begin(job, on_preview)

    engine = start(lambda: RecordingModel(gate))
    engine.wait_ready()
    tickets = [engine.submit(make_job(64, 64, steps=1))]
    wait_until(lambda: ("run", 1) in events)
    tickets += [engine.submit(make_job(64, 64, steps=steps)) for steps in (2, 3)]
    gate.release(9)
    for ticket in tickets:
        ticket.future.result(LIMIT)
    kept = [event for event in events if event != ("prepare", 1)]  # only if it waited when it was submitted
    assert list(dict.fromkeys(kept)) == [("run", 1), ("prepare", 2), ("run", 2), ("prepare", 3), ("run", 3)]


def test_no_job_is_accepted_before_the_model_is_loaded(start):
    loaded = Event()

    def load():
        assert loaded.wait(LIMIT)
        return FakeModel()

    engine = start(load)
    assert engine.state is State.LOADING
    with pytest.raises(Unavailable, match="loading"):
        engine.submit(JOB)
    loaded.set()
    engine.wait_ready()


def test_a_model_that_cannot_be_loaded_is_reported_and_no_job_accepted(start):
    def load():
        raise WeightsError("a.safetensors", "truncated")

    engine = start(load)
    with pytest.raises(Unavailable, match=r"a\.safetensors: truncated"):
        engine.wait_ready()
    assert engine.state is State.DEFUNCT
    with pytest.raises(Unavailable):
        engine.submit(JOB)


@pytest.mark.parametrize("kind", [ConfigError, UnusableSetting])
def test_a_setting_that_keeps_the_model_from_being_loaded_is_told_from_other_reasons(start, kind):
    def load():
        raise kind('speed.graphs = "on": not here')

    engine = start(load)
    with pytest.raises(ConfigError, match=r'^speed\.graphs = "on": not here$'):
        engine.wait_ready()
    assert engine.wait_end() == 'the model could not be loaded: speed.graphs = "on": not here'
    with pytest.raises(Unavailable, match="not here"):
        engine.submit(JOB)


def test_an_internal_error_while_loading_is_not_shown_to_clients(start):
    def load():
        raise KeyError("/home/somebody/secret")

    engine = start(load)
    with pytest.raises(Unavailable) as caught:
        engine.wait_ready()
    assert "secret" not in str(caught.value)


def test_a_full_queue_refuses_immediately(start_busy):
    engine, gate, *tickets = start_busy(2)
    tickets += [engine.submit(JOB, client=client) for client in "ab"]
    with pytest.raises(
        Overloaded, match=r"the queue has no room for another image: 2 of 2 wait; try again in"
    ):
        engine.submit(JOB)
    gate.release(9)
    assert all(ticket.future.result(LIMIT).images for ticket in tickets)


def test_a_queue_is_full_by_images_and_a_job_for_more_waits_alone(start_busy):
    engine, gate, *tickets = start_busy(3)
    four, two = make_job(64, 64, seeds=(1, 2, 3, 4)), make_job(64, 64, seeds=(1, 2))
    tickets.append(engine.submit(four))
    with pytest.raises(Overloaded, match="no room for another image: 4 of 3 wait"):
        engine.admit()
    tickets.pop().cancel()
    tickets.append(engine.submit(two, client="a"))
    with pytest.raises(Overloaded, match="no room for 2 images: 2 of 3 wait"):
        engine.submit(two, client="b")
    tickets.append(engine.submit(JOB, client="b"))
    gate.release(99)
    assert all(ticket.future.result(LIMIT).images for ticket in tickets)


def test_one_client_has_at_most_half_of_the_queue(start_busy):
    engine, gate, *tickets = start_busy(6, "many")
    tickets += [engine.submit(JOB, client="many") for _ in range(3)]
    with pytest.raises(Overloaded, match="no room for another image of yours: 3 of 3 wait") as caught:
        engine.submit(JOB, client="many")
    assert caught.value.headers == {"Retry-After": "1"}
    tickets.append(engine.submit(JOB, client="one"))
    with pytest.raises(Overloaded, match="no room for 3 images: 4 of 6 wait"):
        engine.submit(make_job(seeds=(1, 2, 3)), client="other")
    tickets.append(engine.submit(JOB, client="other"))
    gate.release(99)
    assert all(ticket.future.result(LIMIT).images for ticket in tickets)


def test_a_job_that_raises_leaves_the_engine_serving_the_next(start):
    fake_model = FakeModel()
    engine = start(lambda: fake_model)
    engine.wait_ready()
    fake_model.failure = RuntimeError("boom")
    with pytest.raises(RuntimeError, match="boom"):
        engine.submit(JOB).future.result(LIMIT)
    assert engine.state is State.READY
    fake_model.failure = StopIteration()  # which no asyncio future can hold
    with pytest.raises(RuntimeError, match="StopIteration"):
        engine.submit(JOB).future.result(LIMIT)
    fake_model.failure = None
    assert engine.submit(JOB).future.result(LIMIT).images


def test_a_cancelled_job_is_dropped_from_the_queue_or_stopped_before_its_next_evaluation(start):
    gate = Semaphore(0)
    fake_model = FakeModel(gate)
    engine = start(lambda: fake_model)
    engine.wait_ready()
    running, queued = engine.submit(JOB), engine.submit(JOB)
    wait_until(lambda: fake_model.evaluations)
    queued.cancel()
    running.cancel()
    gate.release(1)
    with pytest.raises(Cancelled):
        running.future.result(LIMIT)
    assert queued.future.cancelled()
    assert len(fake_model.evaluations) == 1
    gate.release(3)
    assert engine.submit(JOB).future.result(LIMIT).images
    assert len(fake_model.finished) == 1


def test_a_cancelled_job_leaves_the_queue_at_once(start_busy):
    engine, gate, *tickets = start_busy(2)
    gone = [engine.submit(JOB, client=client) for client in "ab"]
    with pytest.raises(Overloaded):
        engine.submit(JOB)
    for ticket in (*gone, *gone):  # twice: the second is without effect
        ticket.cancel()
    assert engine.waiting == 0
    tickets += [engine.submit(JOB, client=client) for client in "ab"]
    gate.release(9)
    assert all(ticket.future.result(LIMIT).images for ticket in tickets)


def test_stopping_does_not_wait_for_a_model_that_loads(start):
    loaded = Event()

    def load():
        assert loaded.wait(LIMIT)
        return FakeModel()

    engine = start(load)
    stop(engine)
    assert engine.is_running
    with pytest.raises(Unavailable):
        engine.submit(JOB)
    loaded.set()
    wait_until(lambda: engine.state is State.STOPPED)
    wait_until(lambda: not engine.is_running)


def test_a_lost_device_refuses_running_waiting_and_later_jobs(start, caplog):
    gate = Semaphore(0)
    fake_model = FakeModel(gate)
    fake_model.failure = DeviceLost("cuda:0: CUDA error: an illegal memory access was encountered")
    engine = start(lambda: fake_model)
    engine.wait_ready()
    tickets = [engine.submit(JOB) for _ in range(3)]
    dropped = engine.submit(JOB)
    wait_until(lambda: fake_model.evaluations)
    dropped.cancel()
    gate.release(JOB.steps)
    for ticket in tickets:
        with pytest.raises(Unavailable, match="the device has failed") as caught:
            ticket.future.result(LIMIT)
        assert "CUDA" not in str(caught.value)
        assert engine.state is State.DEFUNCT
    assert len(fake_model.jobs) == 1
    with pytest.raises(Unavailable, match="the device has failed"):
        engine.submit(JOB)
    assert engine.waiting == 0
    stop(engine)
    assert engine.state is State.DEFUNCT
    (record,) = [record for record in caplog.records if record.name == "naiad.engine"]
    assert record.exc_info
    assert "illegal memory access" in str(record.exc_info[1])


def test_an_error_in_the_engine_itself_refuses_all_jobs(start, monkeypatch):
    engine = start(FakeModel)
    engine.wait_ready()

    def fail(*_):
        raise KeyError("secret")

    monkeypatch.setattr(engine._queue, "rank", fail)
    ticket = engine.submit(JOB)
    with pytest.raises(Unavailable, match=r"^the engine has failed; restart the server$"):
        ticket.future.result(LIMIT)
    assert engine.state is State.DEFUNCT


def test_a_device_lost_while_stopping_does_not_block_the_stop(start):
    gate = Semaphore(0)
    fake_model = FakeModel(gate)
    fake_model.failure = DeviceLost("cuda:0")
    engine = start(lambda: fake_model)
    engine.wait_ready()
    tickets = [engine.submit(JOB), engine.submit(JOB)]
    wait_until(lambda: fake_model.evaluations)
    stopping = threading.Thread(target=engine.stop, daemon=True)
    stopping.start()
    wait_until(lambda: engine.state is State.DRAINING)
    gate.release(JOB.steps)
    stopping.join(LIMIT)
    assert not stopping.is_alive()
    assert engine.state is State.DEFUNCT
    assert all(isinstance(ticket.future.exception(0), Unavailable) for ticket in tickets)


def test_a_step_that_hangs_refuses_all_jobs_at_once(start, caplog):
    gate = Semaphore(0)
    fake_model = FakeModel(gate)
    engine = start(lambda: fake_model, step_timeout=600)
    engine.wait_ready()
    tickets = [engine.submit(JOB) for _ in range(3)]
    gone = engine.submit(JOB)
    gone.cancel()
    wait_until(lambda: fake_model.evaluations)
    engine.watchdog.count(601)
    for ticket in tickets:
        with pytest.raises(Unavailable, match=r"a step on the device has not ended for 60\d s; restart"):
            ticket.future.result(0)
    assert engine.state is State.HUNG
    assert engine.wait_end() == engine.failure
    with pytest.raises(Unavailable, match="has not ended"):
        engine.submit(JOB)
    assert "_evaluate" in caplog.text  # where it hangs
    stop(engine)  # does not wait for it
    assert engine.is_running
    gate.release(99)
    wait_until(lambda: engine.state is State.STOPPED)
    assert engine.failure
    assert len(fake_model.evaluations) == 1


def test_an_engine_whose_step_ends_after_all_goes_on(start):
    gate = Semaphore(0)
    fake_model = FakeModel(gate)
    engine = start(lambda: fake_model, step_timeout=600)
    engine.wait_ready()
    tickets = [engine.submit(JOB) for _ in range(2)]
    wait_until(lambda: fake_model.evaluations)
    engine.watchdog.count(601)
    gate.release(1)
    wait_until(lambda: engine.state is State.READY)
    assert engine.failure is None
    assert len(fake_model.evaluations) == 1  # nothing more was done for the jobs that were refused
    gate.release(JOB.steps)
    assert engine.submit(JOB).future.result(LIMIT).images
    assert all(isinstance(ticket.future.exception(0), Unavailable) for ticket in tickets)


@pytest.mark.parametrize("hangs", ["activate", "begin"])
def test_weights_that_hang_refuse_jobs_too(start, monkeypatch, hangs):
    fake_model, hang = FakeModel(), Hang()
    function = Faulty(getattr(fake_model, hangs), {1: hang})
    monkeypatch.setattr(fake_model, hangs, function)
    engine = start(lambda: fake_model, step_timeout=600)
    engine.wait_ready()
    ticket = engine.submit(JOB)
    assert hang.begun.wait(LIMIT)
    engine.watchdog.count(601 * (WEIGHTS if hangs == "activate" else 1))
    with pytest.raises(Unavailable, match="has not ended"):
        ticket.future.result(0)
    hang.release()
    wait_until(lambda: engine.state is State.READY)
    assert engine.submit(JOB).future.result(LIMIT).images


def test_a_step_that_hangs_does_not_block_a_stop_that_has_begun(start):
    gate = Semaphore(0)
    fake_model = FakeModel(gate)
    engine = start(lambda: fake_model, step_timeout=600)
    engine.wait_ready()
    tickets = [engine.submit(JOB), engine.submit(JOB)]
    wait_until(lambda: fake_model.evaluations)
    stopping = threading.Thread(target=engine.stop, daemon=True)
    stopping.start()
    wait_until(lambda: engine.state is State.DRAINING)
    engine.watchdog.count(601)
    stopping.join(LIMIT)
    assert not stopping.is_alive()
    assert engine.is_running
    assert engine.failure
    gate.release(99)
    wait_until(lambda: engine.state is State.STOPPED)
    assert all(isinstance(ticket.future.exception(0), Unavailable) for ticket in tickets)
    assert len(fake_model.evaluations) == 1


def test_stopping_finishes_the_queued_jobs_and_ends_the_thread():
    gate = Semaphore(9)
    engine = Engine(lambda: FakeModel(gate))
    engine.start()
    engine.wait_ready()
    tickets = [engine.submit(JOB) for _ in range(3)]
    engine.stop()
    assert all(ticket.future.done() for ticket in tickets)
    assert engine.state is State.STOPPED
    assert not engine.is_running
    with pytest.raises(Unavailable):
        engine.submit(JOB)
