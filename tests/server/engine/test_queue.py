"""The queue: what is expected of its jobs, and how many images wait."""

import pytest
from jobs import make_job

from pipelines.job import RgbImage, UpscaleJob
from pipelines.steps import Run, Step
from pipelines.types import Output, Progress
from server.engine.queue import Forecast, Queue
from server.engine.ticket import Ticket, measure

SHORT, LONG = make_job(512, 512, steps=4), make_job(512, 512, steps=40)
UPSCALE = UpscaleJob(RgbImage(1, 1, bytes(3)), 2, 2)


def is_active(work):
    return True


def start(queue, ticket, done):
    """Begin a ticket's job, and take `done` of its steps."""

    def count():
        for step in range(ticket.work.steps):
            yield Step(Progress(0, step + 1, ticket.work.steps, 1.0))

    job = queue.begin(ticket, Run([count()], lambda results: Output((), ())))
    job.find_step(0)
    for _ in range(done):
        job.answer(0, None)


@pytest.fixture
def queue():
    """A queue whose device takes a second for a unit of work."""
    queue = Queue(4)
    ticket = Ticket(SHORT)
    ticket.service = measure(SHORT)
    for _ in range(100):
        queue.learn_speed(ticket)
    return queue


def add(queue, work, client):
    ticket = Ticket(work, client=client)
    queue.add(ticket)
    return ticket


def test_jobs_are_expected_to_end_one_after_the_other_in_their_order(queue):
    long, short = add(queue, LONG, "a"), add(queue, SHORT, "b")
    found = queue.forecast(is_active)
    assert [each.ticket for each in found] == [short, long]
    work = measure(SHORT), measure(LONG)
    assert [each.start for each in found] == [0.0, pytest.approx(work[0])]
    assert [each.end for each in found] == [pytest.approx(work[0]), pytest.approx(sum(work))]
    assert [each.done for each in found] == [0.0, 0.0]


def test_what_a_running_job_has_done_is_not_expected_again(queue):
    ticket = add(queue, LONG, "a")
    start(queue, ticket, 30)
    (found,) = queue.forecast(is_active)
    assert found == Forecast(ticket, 0.0, found.end, 0.75)
    assert found.end == pytest.approx(measure(LONG) / 4)


def test_a_faster_device_is_expected_to_end_sooner(queue):
    add(queue, LONG, "a")
    before = queue.forecast(is_active)[0].end
    fast = Ticket(SHORT)
    fast.service = measure(SHORT) / 10
    for _ in range(100):
        queue.learn_speed(fast)
    assert queue.forecast(is_active)[0].end == pytest.approx(before / 10)


def test_a_small_job_that_took_long_for_its_size_hardly_counts(queue):
    add(queue, LONG, "a")
    before = queue.forecast(is_active)[0].end
    small = Ticket(make_job(64, 64, steps=1))
    small.service = 100 * measure(small.work)
    queue.learn_speed(small)
    assert queue.forecast(is_active)[0].end == pytest.approx(before, rel=0.2)


def test_a_running_job_that_is_slower_than_expected_counts_at_once(queue):
    slow = add(queue, LONG, "a")
    before = queue.forecast(is_active)[0].end
    start(queue, slow, 20)
    slow.service = 10 * measure(LONG)
    queue.learn_speed(slow)
    assert queue.forecast(is_active)[0].end > 3 * before


def test_an_empty_queue_expects_nothing():
    assert Queue(4).forecast(is_active) == []


def test_the_images_that_wait_are_counted_without_those_of_jobs_that_have_begun(queue):
    running = add(queue, SHORT, "a")
    add(queue, make_job(seeds=(1, 2, 3)), "a")
    add(queue, UPSCALE, "b")
    assert (queue.waiting, queue.count_waiting()) == (3, 5)
    start(queue, running, 1)
    assert (queue.waiting, queue.count_waiting()) == (2, 4)
    assert [queue.count_waiting(client) for client in "abc"] == [3, 1, 0]
