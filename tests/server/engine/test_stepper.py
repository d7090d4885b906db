"""The stepper with a model that counts: which steps are taken, together with which, and what ends whose job."""

from dataclasses import replace
from threading import Condition
from typing import cast

import pytest
from faults import Faulty, fail
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from jobs import make_job

from pipelines.errors import Cancelled, DeviceLost, NotFinite, OutOfMemory
from pipelines.steps import Run, Stage, Step
from pipelines.types import BatchingMode, Output, Progress
from server.engine.events import Event, PassTaken, WeightsChanged
from server.engine.queue import Queue
from server.engine.stepper import LoadedModel, Stepper
from server.engine.ticket import Ticket
from server.engine.watchdog import Watchdog

LOST, BROKEN = 2**31, 2**30
"""Seeds of images whose second step fails: with the device, or alone."""


class CountingModel:
    """Adds one to each image's seed in each step; weights are the model that a job names.

    Attributes:
        passes: the seeds of the images that each call was for.
        flaky: whether calls for several images fail.
        stages: what the steps are for, in order; by default all are to draw.
        room: how many images there is memory for.
        spare: images for which there is memory once some was freed.
        freed: the models of the jobs for which memory was freed, and of those that had begun.
    """

    model = None

    def __init__(self):
        self.active, self.passes, self.activations, self.closed = "m", [], [], []
        self.flaky, self.stages = False, tuple[Stage, ...]()
        self.room, self.spare, self.freed = 1000, 0, []

    def is_active(self, work):
        return work.model == self.active

    def find_place(self, name):
        return "device" if name == self.active else "disk"

    def activate(self, work, others):
        if work.model == "absent":
            raise NotFinite("its weights are damaged")
        if work.model != self.active:
            self.activations.append(work.model)
            self.active = work.model

    def free_memory(self, work, others):
        self.freed.append((work.model, [other.model for other in others]))
        self.room, self.spare = self.room + self.spare, 0

    def begin(self, work, on_preview):
        assert self.is_active(work)
        return Run([self._count(work, seed) for seed in work.passes[0].seeds], self._finish)

    def _finish(self, numbers):
        return Output(list(numbers), (1.0, 0.0))

    def _count(self, work, seed):
        number = seed
        try:
            if work.sampler == "ddim":
                yield Step(Progress(0, 1, work.steps, 0.0), self._prepare, seed, stage="encode")
            for step in range(work.steps):
                progress = Progress(0, step + 1, work.steps, 1.0)
                key = None if work.sampler == "k_lms" else work.passes[0].width
                stage = self.stages[step] if self.stages else "draw"
                number = yield Step(progress, self._take, (work, seed, number), key, 0.3, stage)
            return number
        finally:
            self.closed.append(seed)

    def _prepare(self, seeds):
        self.passes.append([f"prepare {seed}" for seed in seeds])
        return [None]

    def _take(self, inputs):
        self.passes.append([seed for _, seed, _ in inputs])
        assert all(self.is_active(work) for work, *_ in inputs)
        if self.flaky and len(inputs) > 1:
            raise RuntimeError("a kernel for one image only")
        if len(inputs) > self.room:
            raise OutOfMemory
        for _, seed, number in inputs:
            if seed & LOST and number > seed:
                raise DeviceLost("cuda:0")
            if seed & BROKEN and number > seed:
                raise NotFinite("the network returned NaN")
        return [number + 1 for *_, number in inputs]


class Bench:
    """A stepper without a thread: a test says when a pass is taken."""

    def __init__(self, batching: BatchingMode = "exact", images=4):
        self.model: CountingModel = CountingModel()
        self.queue = Queue(images)
        self.events: list[Event] = []
        model, watchdog = cast("LoadedModel", self.model), Watchdog(0, lambda _: None)
        args = Condition(), batching, lambda: None, watchdog, self.events.append
        self.stepper = Stepper(model, self.queue, *args)

    def submit(self, *seeds, steps=2, client="", model="m", **changes):
        ticket = Ticket(replace(make_job(seeds=seeds, steps=steps, **changes), model=model), client=client)
        self.queue.add(ticket)
        return ticket

    def run(self, passes=10_000):
        for _ in range(passes):
            if not len(self.queue):
                return
            self.stepper.take_pass()


def test_each_image_of_a_job_gets_its_own_passes():
    bench = Bench()
    ticket = bench.submit(10, 20, steps=2)
    bench.run()
    assert ticket.future.result(0).images == [12, 22]
    assert bench.model.passes == [[10], [10], [20], [20]]


def test_a_short_job_passes_a_long_one_between_two_of_its_steps():
    bench = Bench()
    long = bench.submit(10, steps=50)
    bench.run(passes=3)
    short = bench.submit(20, steps=1)
    bench.run()
    assert bench.model.passes[:5] == [[10], [10], [10], [20], [10]]
    assert [ticket.future.result(0).images for ticket in (long, short)] == [[60], [21]]


def test_no_more_images_begin_than_there_is_room_for():
    bench = Bench(images=2)
    tickets = [
        bench.submit(10 * (k + 1), steps=50 - 10 * k) for k in range(4)
    ]  # each shorter than the one before
    for ticket in tickets:
        bench.queue.remove(ticket)
    for ticket in tickets:
        bench.queue.add(ticket)
        bench.run(passes=1)
    assert bench.model.passes == [[10], [20], [20], [20]]
    bench.run()
    assert [ticket.future.result(0).images for ticket in tickets] == [[60], [60], [60], [60]]


def test_images_of_different_jobs_share_passes():
    bench = Bench("shared")
    first, second = bench.submit(10, steps=3), bench.submit(20, 30, steps=2)
    other = bench.submit(40, steps=1, width=128)
    bench.run()
    assert sorted(map(sorted, bench.model.passes)) == [[10], [10, 20, 30], [10, 20, 30], [40]]
    assert first.future.result(0).images == [13]
    assert second.future.result(0).images == [22, 32]
    assert other.future.result(0).images == [41]


def test_a_job_that_comes_later_joins_at_the_next_step():
    bench = Bench("shared")
    bench.submit(10, steps=5)
    bench.run(passes=2)
    bench.submit(20, steps=2)
    bench.run()
    assert [sorted(seeds) for seeds in bench.model.passes] == [[10], [10], [10, 20], [10, 20], [10]]


def test_a_shared_pass_has_shares_that_add_up_to_1():
    bench = Bench("shared", images=10)
    for seed in range(10, 15):
        bench.submit(seed, steps=2)
    bench.run()
    assert max(map(len, bench.model.passes)) == 3
    assert len(bench.model.passes) == 4


def test_images_that_have_to_be_prepared_share_passes_from_then_on():
    bench = Bench("shared")
    bench.submit(10, 20, steps=6, sampler="ddim")
    bench.run(passes=3)
    bench.submit(30, steps=9, sampler="ddim")  # longer, so that it is never the first
    bench.run()
    assert bench.model.passes[:2] == [["prepare 20"], ["prepare 10"]]
    assert bench.model.passes[4] == ["prepare 30"]
    shared = [sorted(seeds) for seeds in (*bench.model.passes[2:4], *bench.model.passes[5:])]
    assert shared == [[10, 20]] * 3 + [[10, 20, 30]] * 3 + [[30]] * 6


def test_a_short_job_passes_long_ones_that_fill_the_passes():
    bench = Bench("shared")
    bench.submit(10, 20, 30, 40, steps=50)
    bench.submit(50, 60, steps=50)
    bench.run(passes=2)
    short = bench.submit(70, steps=2, width=128)
    bench.run(passes=2)
    assert [sorted(seeds) for seeds in bench.model.passes] == [[10, 50, 60], [10, 50, 60], [70], [70]]
    assert short.future.result(0).images == [72]


def test_jobs_that_there_is_no_room_for_do_not_begin():
    bench = Bench("shared", images=2)
    for seed in range(10, 20):
        bench.submit(seed)
    bench.run(passes=1)
    assert bench.queue.waiting == 9


def test_steps_without_a_key_are_taken_alone():
    bench = Bench("shared")
    bench.submit(10, 20, steps=1, sampler="k_lms")
    bench.run()
    assert bench.model.passes == [[10], [20]]


def test_jobs_with_other_weights_share_no_pass_and_few_changes_are_made():
    bench = Bench("shared")
    tickets = [bench.submit(10 * k, steps=5, model="m" if k % 2 else "n") for k in range(1, 7)]
    bench.run()
    assert [ticket.future.result(0).images for ticket in tickets] == [[10 * k + 5] for k in range(1, 7)]
    assert bench.model.activations == ["n"]


@pytest.mark.parametrize("batching", ["exact", "shared"])
def test_an_error_in_one_image_ends_its_job_and_no_other(batching):
    bench = Bench(batching)
    broken, good = bench.submit(BROKEN, 7, steps=3), bench.submit(20, 30, steps=3)
    bench.run()
    with pytest.raises(NotFinite, match="NaN"):
        broken.future.result(0)
    assert good.future.result(0).images == [23, 33]
    assert bench.model.closed.count(BROKEN) == 1


def test_a_shared_pass_that_fails_is_taken_again_image_by_image(caplog):
    bench = Bench("shared")
    bench.model.flaky = True
    tickets = [bench.submit(10, steps=1), bench.submit(20, steps=1)]
    bench.run()
    assert bench.model.passes == [[10, 20], [10], [20]]
    assert [ticket.future.result(0).images for ticket in tickets] == [[11], [21]]
    assert "a shared pass failed" in caplog.text


def test_a_step_that_runs_out_of_memory_is_taken_again_after_memory_was_freed(caplog):
    bench = Bench()
    other, ticket = bench.submit(10, steps=1), bench.submit(20, steps=2, model="n")
    bench.model.room, bench.model.spare = 0, 1
    bench.run()
    assert bench.model.passes == [[10], [10], [20], [20]]
    assert bench.model.freed == [("m", ["m"])]
    assert [each.future.result(0).images for each in (other, ticket)] == [[11], [22]]
    assert "not enough memory; trying again without all" in caplog.text


def test_a_job_for_which_there_is_not_enough_memory_fails_and_no_other():
    bench = Bench()
    bench.model.room = 0
    large = bench.submit(10)
    bench.run()
    with pytest.raises(OutOfMemory):
        large.future.result(0)
    assert bench.model.passes == [[10], [10]]
    bench.model.room = 1
    assert bench.submit(20).future.exception is not None
    ticket = bench.submit(30)
    bench.run()
    assert ticket.future.result(0).images == [32]


def test_weights_and_beginnings_that_run_out_of_memory_are_tried_again(monkeypatch):
    bench = Bench()
    for name in ("activate", "begin"):
        monkeypatch.setattr(bench.model, name, Faulty(getattr(bench.model, name), {1: fail(OutOfMemory())}))
    ticket = bench.submit(10)
    bench.run()
    assert ticket.future.result(0).images == [12]
    assert bench.model.freed == [("m", [])] * 2


def test_a_shared_pass_for_which_there_is_not_enough_memory_gets_fewer_rows():
    bench = Bench("shared")
    bench.model.room = 2
    tickets = [bench.submit(seed, steps=2) for seed in (10, 20, 30, 40)]
    bench.run()
    assert [ticket.future.result(0).images for ticket in tickets] == [[12], [22], [32], [42]]
    # twice with three, then one by one; from then on two share a pass
    assert [len(seeds) for seeds in bench.model.passes] == [3, 3, 1, 1, 1, 2, 2, 1]
    assert len(bench.model.freed) == 1


def test_weights_that_cannot_be_brought_end_only_the_job_that_needs_them():
    bench = Bench()
    absent, good = bench.submit(10, model="absent"), bench.submit(20)
    bench.run()
    with pytest.raises(NotFinite, match="damaged"):
        absent.future.result(0)
    assert good.future.result(0).images == [22]


def test_a_cancelled_job_is_closed_before_its_next_step():
    bench = Bench()
    ticket = bench.submit(10, 20, steps=5)
    bench.run(passes=2)
    ticket.cancel()
    bench.run()
    with pytest.raises(Cancelled):
        ticket.future.result(0)
    assert bench.model.passes == [[10], [10]]
    assert bench.model.closed == [10]


@pytest.fixture
def ticking(monkeypatch):
    """A bench whose steps take a second each, by a clock that stands still otherwise."""
    now, bench = [0.0], Bench()
    monkeypatch.setattr("server.engine.stepper.perf_counter", lambda: now[0])
    monkeypatch.setattr("server.engine.ticket.perf_counter", lambda: now[0])
    take = bench.model._take

    def take_a_second(inputs):
        now[0] += 1.0
        return take(inputs)

    monkeypatch.setattr(bench.model, "_take", take_a_second)
    return bench


def test_the_time_of_a_job_is_that_of_its_own_steps(ticking):
    long = ticking.submit(10, steps=30)
    ticking.run(passes=4)
    short = ticking.submit(20, steps=2)
    ticking.run()
    assert (short.future.result(0).queue_seconds, short.future.result(0).run_seconds) == (0.0, 2.0)
    assert long.future.result(0).run_seconds == 30.0


class Load(RuleBasedStateMachine):
    """Jobs come, are cancelled and fail in any order; each ends exactly once, and no other's result changes."""

    tickets = Bundle("tickets")
    batching: BatchingMode = "exact"

    def __init__(self):
        super().__init__()
        self.bench = Bench(self.batching, images=3)
        self.ends = {}
        self.is_short = False

    @rule(
        target=tickets,
        seeds=st.lists(st.integers(1, 100), min_size=1, max_size=3),
        steps=st.integers(1, 4),
        client=st.sampled_from("ab"),
        model=st.sampled_from(["m", "m", "n", "absent"]),
        width=st.sampled_from([64, 128]),
        is_broken=st.booleans(),
    )
    def submit(self, seeds, steps, client, model, width, is_broken):
        seeds = [seed + BROKEN for seed in seeds] if is_broken else seeds
        ticket = self.bench.submit(*seeds, steps=steps, client=client, model=model, width=width)
        self.ends[ticket] = []
        ticket.future.add_done_callback(lambda _: self.ends[ticket].append(True))
        return ticket

    @rule()
    def step(self):
        self.bench.run(passes=1)

    @rule(ticket=consumes(tickets))
    def cancel(self, ticket):
        ticket.cancel()

    @rule()
    def fail_shared_passes(self):
        self.bench.model.flaky = not self.bench.model.flaky

    @rule(room=st.sampled_from([0, 1, 2, 1000]), spare=st.sampled_from([0, 1]))
    def limit_memory(self, room, spare):
        self.bench.model.room, self.bench.model.spare = room, spare
        self.is_short |= room == 0

    @invariant()
    def no_job_ends_twice(self):
        assert all(len(ends) <= 1 for ends in self.ends.values())

    def teardown(self):
        self.bench.run()
        assert not len(self.bench.queue)
        assert not self.bench.queue.running
        for ticket, ends in self.ends.items():
            assert len(ends) == 1
            self.check_end(ticket)

    def check_end(self, ticket):
        seeds, steps = ticket.work.passes[0].seeds, ticket.work.steps
        if ticket.future.cancelled():
            assert ticket.is_cancelled
        elif (error := ticket.future.exception(0)) is None:
            assert ticket.future.result(0).images == [seed + steps for seed in seeds]
        elif isinstance(error, Cancelled):
            assert ticket.is_cancelled
        elif isinstance(error, OutOfMemory):
            assert self.is_short
        elif "damaged" in str(error):
            assert ticket.work.model == "absent"
        else:
            assert any(seed & BROKEN for seed in seeds)
            assert steps > 1


class SharedLoad(Load):
    batching = "shared"


TestLoad = Load.TestCase
TestSharedLoad = SharedLoad.TestCase
TestLoad.settings = TestSharedLoad.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_the_seconds_of_a_job_are_counted_by_what_they_are_for(ticking):
    ticking.model.stages = ("encode", "draw", "draw", "decode")
    ticket = ticking.submit(10, steps=4)
    ticking.run()
    assert ticket.future.result(0).stages == {"encode": 1.0, "draw": 2.0, "decode": 1.0}
    assert ticket.future.result(0).run_seconds == 4.0
    passes = [event for event in ticking.events if isinstance(event, PassTaken)]
    assert [(each.stage, each.seconds) for each in passes] == [
        ("encode", 1.0),
        ("draw", 1.0),
        ("draw", 1.0),
        ("decode", 1.0),
    ]


def test_what_happens_is_reported():
    bench = Bench("shared")
    bench.model.flaky = True
    bench.submit(10, 20, steps=1)
    bench.run()
    bench.submit(30, steps=1, model="other")
    bench.run()
    kinds = [type(event).__name__ for event in bench.events]
    assert kinds == ["JobBegan", "SharedPassFailed", "PassTaken", "WeightsChanged", "JobBegan", "PassTaken"]
    passes = [event for event in bench.events if isinstance(event, PassTaken)]
    assert [(each.stage, each.images, each.rows) for each in passes] == [("draw", 2, 2), ("draw", 1, 1)]
    (changed,) = (event for event in bench.events if isinstance(event, WeightsChanged))
    assert changed.source == "disk"
