"""The engine's threads under any order of jobs, cancellations, failures, hangs and its end: each job ends once."""

from threading import Semaphore, Thread

import numpy as np
from fake_model import FakeModel
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule
from jobs import make_job
from waiting import LIMIT, wait_until

from pipelines.errors import Cancelled, DeviceLost, NotFinite, OutOfMemory
from server.engine.engine import Engine, State
from server.errors import Unavailable

EVALUATIONS = 10_000
"""More than a test needs."""


class FailingModel(FakeModel):
    """Raises an error at the end of the jobs whose seeds have one.

    Attributes:
        is_waiting: whether an evaluation waits for the test.
    """

    def __init__(self, gate):
        super().__init__(gate)
        self.errors, self.is_waiting = {}, False

    def _evaluate(self, steps):
        self.is_waiting = True
        try:
            return super()._evaluate(steps)
        finally:
            self.is_waiting = False

    def _generate(self, job, on_preview):
        output = yield from super()._generate(job, on_preview)
        if (error := self.errors.get(job.passes[0].seeds)) is not None:
            raise error
        return output


class EngineLoad(RuleBasedStateMachine):
    """A test decides when an evaluation ends, and whether it hangs before."""

    tickets = Bundle("tickets")

    def __init__(self):
        super().__init__()
        self.gate = Semaphore(0)
        self.model = FailingModel(self.gate)
        self.engine = Engine(lambda: self.model, step_timeout=600)
        self.engine.start()
        self.engine.wait_ready()
        self.ends, self.refused = {}, set()

    @rule(
        target=tickets,
        seed=st.integers(1, 50),
        steps=st.integers(1, 3),
        error=st.sampled_from([None, None, None, NotFinite, OutOfMemory, DeviceLost]),
    )
    def submit(self, seed, steps, error):
        job = make_job(64, 64, steps=steps, seeds=(len(self.ends), seed))
        self.model.errors[job.passes[0].seeds] = None if error is None else error()
        try:
            ticket = self.engine.submit(job)
        except Unavailable:
            assert self.engine.failure is not None
            return None
        self.ends[ticket] = []
        ticket.future.add_done_callback(lambda _: self.ends[ticket].append(True))
        self.settle()
        return ticket

    def settle(self):
        """Wait until the device thread waits for a job or for the test, so that each run of an example is the same."""
        wait_until(lambda: self.count_jobs() == 0 or (self.model.is_waiting and self.gate._value == 0))

    def count_jobs(self):
        return self.engine.waiting + self.engine.running

    @rule(count=st.integers(1, 4))
    def evaluate(self, count):
        self.gate.release(count)
        self.settle()

    @rule(ticket=consumes(tickets))
    def cancel(self, ticket):
        if ticket is not None:
            ticket.cancel()
            self.settle()

    @precondition(lambda self: self.engine.state is State.READY)
    @rule()
    def hang(self):
        self.engine.watchdog.count(601)
        if self.engine.state is State.HUNG:
            self.refused |= {ticket for ticket in self.ends if ticket.future.done()}

    @precondition(lambda self: self.engine.state is State.HUNG)
    @rule()
    def end_hang(self):
        self.gate.release()
        wait_until(lambda: self.engine.state is not State.HUNG)
        self.settle()

    @invariant()
    def no_job_ends_twice(self):
        assert all(len(ends) <= 1 for ends in self.ends.values())

    def teardown(self):
        self.gate.release(EVALUATIONS)
        stopping = Thread(target=self.engine.stop, daemon=True)
        stopping.start()
        stopping.join(LIMIT)
        wait_until(lambda: not self.engine.is_running)
        for ticket, ends in self.ends.items():
            wait_until(ticket.future.done)
            assert len(ends) == 1
            self.check_end(ticket)

    def check_end(self, ticket):
        if ticket.future.cancelled():
            assert ticket.is_cancelled
            return
        failure, expected = ticket.future.exception(0), self.model.errors[ticket.work.passes[0].seeds]
        if failure is None:
            assert expected is None
            images = FakeModel().run(ticket.work).images
            assert np.array_equal(ticket.future.result(0).images, images)
        elif isinstance(failure, Cancelled):
            assert ticket.is_cancelled
        elif isinstance(failure, Unavailable):
            assert ticket in self.refused or self.engine.state is State.DEFUNCT
        else:
            assert failure is expected


TestEngineLoad = EngineLoad.TestCase
TestEngineLoad.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
