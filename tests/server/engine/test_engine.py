import threading
import time

import numpy as np
import pytest

from pipelines.errors import Cancelled, WeightsError
from pipelines.job import Guidance, Job, Prompts
from pipelines.types import Progress
from server.engine.engine import Engine, State
from server.errors import Overloaded, Unavailable

JOB = Job("m", Prompts("a"), 64, 64, 3, "k_euler", "native", Guidance(), seeds=(1,))


class Painter:
    """A model that paints one colour, a step whenever it is let."""

    def __init__(self, wait=None, fail=None):
        self.drawn, self.wait, self.fail = [], wait, fail

    def ladder(self, job):
        return (1.0, 0.0)

    def run(self, job, watch):
        for step in range(1, job.steps + 1):
            watch(Progress(0, step, job.steps, 1.0))
            if self.wait is not None:
                assert self.wait.acquire(timeout=10)
        if self.fail is not None:
            raise self.fail
        self.drawn.append(job)
        return [np.full((8, 8, 3), 7, np.uint8)]


@pytest.fixture
def started():
    """Start engines and stop them all."""
    engines = []

    def start(load, **more):
        engine = Engine(load, **more)
        engines.append(engine)
        engine.start()
        return engine

    yield start
    for engine in engines:
        engine.stop()


def until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited ten seconds")


def test_a_job_comes_back_with_its_pictures_and_the_engine_is_ready_again(started):
    engine = started(Painter)
    engine.wait_ready()
    drawn = engine.submit(JOB).future.result(10)
    assert drawn.pictures[0][0, 0, 0] == 7
    assert drawn.run_seconds >= 0
    assert engine.state is State.READY


def test_nothing_is_taken_before_the_model_is_loaded(started):
    loaded = threading.Event()

    def load():
        assert loaded.wait(10)
        return Painter()

    engine = started(load)
    assert engine.state is State.LOADING
    with pytest.raises(Unavailable, match="loading"):
        engine.submit(JOB)
    loaded.set()
    engine.wait_ready()


def test_a_model_that_cannot_load_says_why_and_takes_nothing(started):
    def load():
        raise WeightsError("a.safetensors", "truncated")

    engine = started(load)
    with pytest.raises(Unavailable, match=r"a\.safetensors: truncated"):
        engine.wait_ready()
    assert engine.state is State.DEFUNCT
    with pytest.raises(Unavailable):
        engine.submit(JOB)


def test_a_mistake_of_ours_while_loading_is_not_told_to_clients(started):
    def load():
        raise KeyError("/home/somebody/secret")

    engine = started(load)
    with pytest.raises(Unavailable) as refused:
        engine.wait_ready()
    assert "secret" not in str(refused.value)


def test_a_full_queue_refuses_at_once(started):
    step = threading.Semaphore(0)
    engine = started(lambda: Painter(wait=step), queue_limit=2)
    engine.wait_ready()
    tickets = [engine.submit(JOB)]
    until(lambda: engine.waiting == 0)
    tickets += [engine.submit(JOB), engine.submit(JOB)]
    with pytest.raises(Overloaded, match="2 requests"):
        engine.submit(JOB)
    step.release(9)
    assert all(ticket.future.result(10).pictures for ticket in tickets)


def test_one_jobs_failure_is_its_own(started):
    painter = Painter(fail=RuntimeError("boom"))
    engine = started(lambda: painter)
    engine.wait_ready()
    with pytest.raises(RuntimeError, match="boom"):
        engine.submit(JOB).future.result(10)
    painter.fail = None
    assert engine.submit(JOB).future.result(10).pictures


def test_a_job_nobody_waits_for_is_dropped_from_the_queue_or_stopped_at_its_next_step(started):
    step = threading.Semaphore(0)
    painter = Painter(wait=step)
    engine = started(lambda: painter)
    engine.wait_ready()
    running, queued = engine.submit(JOB), engine.submit(JOB)
    until(lambda: running.progress is not None)
    queued.cancel()
    running.cancel()
    step.release(1)
    with pytest.raises(Cancelled):
        running.future.result(10)
    assert queued.future.cancelled()
    step.release(3)
    assert engine.submit(JOB).future.result(10).pictures
    assert len(painter.drawn) == 1


def test_stopping_finishes_what_was_taken_and_ends_the_thread():
    step = threading.Semaphore(9)
    engine = Engine(lambda: Painter(wait=step))
    engine.start()
    engine.wait_ready()
    tickets = [engine.submit(JOB) for _ in range(3)]
    engine.stop()
    assert all(ticket.future.done() for ticket in tickets)
    assert engine.state is State.STOPPED
    assert not any(thread.name == "device" for thread in threading.enumerate())
    with pytest.raises(Unavailable):
        engine.submit(JOB)
