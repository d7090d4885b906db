"""Images are finished in other threads than the device's, which goes on with the next one meanwhile."""

from dataclasses import replace
from threading import Event, Thread, current_thread
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from fake_model import GENERATE, FakeModel, build_state, start_client
from jobs import make_job
from waiting import LIMIT, wait_until

from pipelines import runner
from pipelines.errors import Cancelled, OutOfMemory
from pipelines.image import finishing
from pipelines.job import InitImage, Pass, PreviousPass, RgbImage, UpscaleJob
from pipelines.runner import Runner
from pipelines.steps import Run, Step
from pipelines.types import Output, Progress
from pipelines.upscale.upscaler import resize_lanczos
from server.engine.engine import Engine, State
from server.engine.queue import Limits

if TYPE_CHECKING:
    from pipelines.pipeline import Pipeline

TWO = make_job(64, 64, steps=1, seeds=(1, 2))
ONE = make_job(64, 64, steps=1, seeds=(3,))


class FinishingModel(FakeModel):
    """Draws black images; finishing paints an image white, or does what a test wants with the image's seed.

    Attributes:
        drawn: an event for each seed, set in the step that draws its image.
        threads: names of the threads by what they did.
    """

    def __init__(self, finish=lambda seed: None):
        super().__init__()
        self.finish, self.drawn, self.threads = finish, {seed: Event() for seed in range(9)}, {}

    def begin(self, job, on_preview=None):
        images = [self._draw(index, seed) for index, seed in enumerate(job.passes[0].seeds)]
        return Run(images, lambda images: Output(images, (1.0, 0.0)), self._finish)

    def _draw(self, index, seed):
        yield Step(Progress(index, 1, 1, 1.0), self._take, seed)
        return seed, np.zeros((64, 64, 3), np.uint8)

    def _take(self, seeds):
        for seed in seeds:
            self.threads["draw", seed] = current_thread().name
            self.drawn[seed].set()
        return seeds

    def _finish(self, drawn):
        seed, image = drawn
        self.threads["finish", seed] = current_thread().name
        self.finish(seed)
        return image + np.uint8(255)


@pytest.fixture
def start():
    """Start an engine with a model, and stop it after the test."""
    engines = []

    def start(model, **options):
        engines.append(Engine(lambda: model, **options))
        engines[-1].start()
        engines[-1].wait_ready()
        return engines[-1]

    yield start
    for engine in engines:
        engine.stop()


def test_the_next_image_is_drawn_while_one_is_finished(start):
    def finish(seed):
        if seed < 3:  # an image of the same job, and then one of another job
            assert model.drawn[seed + 1].wait(LIMIT)

    model = FinishingModel(finish)
    engine = start(model, limits=Limits(images=1))
    tickets = [engine.submit(job) for job in (TWO, ONE)]
    results = [ticket.future.result(LIMIT) for ticket in tickets]
    assert [image.min() for result in results for image in result.images] == [255] * 3
    assert {model.threads["draw", seed] for seed in (1, 2, 3)} == {"device"}
    assert all(model.threads["finish", seed].startswith("finishing") for seed in (1, 2, 3))


def test_an_image_that_cannot_be_finished_ends_its_job_alone(start):
    def finish(seed):
        if seed == 1:
            raise OutOfMemory

    model = FinishingModel(finish)
    engine = start(model)
    failing, other = engine.submit(TWO), engine.submit(ONE)
    assert isinstance(failing.future.exception(LIMIT), OutOfMemory)
    assert len(other.future.result(LIMIT).images) == 1
    assert (engine.state, engine.running) == (State.READY, 0)


def test_a_job_stops_drawing_when_one_of_its_images_cannot_be_finished(start):
    def finish(seed):
        raise ValueError("a bug")

    class WaitingModel(FinishingModel):
        def _take(self, seeds):
            if seeds == [2]:
                (job,) = engine._queue.running.values()
                wait_until(lambda: job.failure)
            return super()._take(seeds)

    model = WaitingModel(finish)
    engine = start(model)
    ticket = engine.submit(make_job(64, 64, steps=1, seeds=(1, 2, 4)))
    assert isinstance(ticket.future.exception(LIMIT), ValueError)
    assert not model.drawn[4].is_set()


def test_images_of_a_job_that_is_cancelled_meanwhile_are_not_finished(start):
    release = Event()
    model = FinishingModel(lambda seed: release.wait(LIMIT))
    engine = start(model)
    held = [engine.submit(make_job(64, 64, steps=1, seeds=(seed,))) for seed in (4, 5)]  # all threads
    wait_until(lambda: ("finish", 4) in model.threads and ("finish", 5) in model.threads)
    ticket = engine.submit(ONE)
    assert model.drawn[3].wait(LIMIT)
    wait_until(lambda: engine.running == 0)
    ticket.cancel()
    release.set()
    assert isinstance(ticket.future.exception(LIMIT), Cancelled)
    assert ("finish", 3) not in model.threads
    assert all(other.future.result(LIMIT).images for other in held)


def test_a_stop_waits_until_images_are_finished(start):
    release, ended = Event(), []

    def finish(seed):
        assert release.wait(LIMIT)
        ended.append("image")

    def stop():
        engine.stop()
        ended.append("engine")

    model = FinishingModel(finish)
    engine = start(model)
    ticket = engine.submit(ONE)
    wait_until(lambda: ("finish", 3) in model.threads)
    stopping = Thread(target=stop)
    stopping.start()
    wait_until(lambda: engine.state is State.DRAINING)
    release.set()
    stopping.join(LIMIT)
    assert ended == ["image", "engine"]
    assert ticket.future.done()
    assert engine.state is State.STOPPED


@pytest.mark.parametrize(("error", "status"), [(OutOfMemory(), 503), (RuntimeError("a bug"), 500)])
def test_an_error_while_finishing_is_answered_like_one_while_drawing(model, error, status):
    def fail(seed=0):
        raise error

    statuses = []
    for fake_model in (FinishingModel(fail), FakeModel()):
        fake_model.failure = error
        with start_client(build_state(model, fake_model), raise_server_exceptions=False) as client:
            parameters = {"width": 64, "height": 64, "steps": 1, "seed": 3}
            statuses.append(client.post(GENERATE, json={"input": "a", "parameters": parameters}).status_code)
    assert statuses == [status, status]


@pytest.fixture
def record(monkeypatch):
    """Record the names of the threads that call a function of a module."""
    threads = []

    def record(module, name):
        function = getattr(module, name)

        def call(*args):
            threads.append(current_thread().name)
            return function(*args)

        monkeypatch.setattr(module, name, call)
        return threads

    return record


@pytest.fixture
def loaded(demo):
    """The demo model as an engine uses it."""

    class DemoModel(FakeModel):
        def activate(self, job, others):
            Runner(demo).activate(job)

        def begin(self, job, on_preview=None):
            return Runner(demo).begin(job, on_preview)

    return DemoModel()


def test_color_match_and_overlay_are_off_the_device_thread_and_change_no_pixel(demo, loaded, start, record):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (64, 96, 3), np.uint8)
    mask = np.zeros((8, 12), np.uint8)
    mask[:, 6:] = 255
    init = InitImage(RgbImage(96, 64, pixels.tobytes()), mask.tobytes(), "soft", color_correct=True)
    job = make_job(96, 64, steps=2, seeds=(1, 2))
    job = replace(job, passes=(replace(job.passes[0], init=init, strength=0.7),))
    expected = [Runner(demo).run(job).images, demo.run(job).images]
    record(finishing, "match_colors")
    threads = record(finishing, "apply_overlay")
    result = start(loaded).submit(job).future.result(LIMIT)
    assert len(threads) == 4
    assert all(name.startswith("finishing") for name in threads)
    assert np.array_equal(result.images[0][:, :40], pixels[:, :40])
    assert all(np.array_equal(result.images, others) for others in expected)
    assert result.stages["finish"] > 0
    assert result.run_seconds == pytest.approx(sum(result.stages.values()))


def test_an_upscale_is_fitted_to_its_size_off_the_device_thread(demo, loaded, start, record):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    job = UpscaleJob(RgbImage(96, 64, pixels.tobytes()), 144, 96)
    expected = Runner(demo).run(job).images
    threads = record(runner, "resize_lanczos")
    result = start(loaded).submit(job).future.result(LIMIT)
    assert [name.split("_")[0] for name in threads] == ["finishing"]
    assert np.array_equal(result.images, expected)
    assert result.images[0].shape == (96, 144, 3)


def test_what_enhance_enlarges_is_finished_first(demo):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    kept = np.zeros((8, 8), np.uint8)
    kept[0, 0] = 255
    init = InitImage(RgbImage(64, 64, pixels.tobytes()), kept.tobytes(), "hard")
    job = make_job(64, 64, steps=1)
    first = replace(job.passes[0], init=init)
    enhance = Pass(128, 128, (1,), PreviousPass(), strength=0.1)
    job = replace(job, passes=(first, enhance))
    generate, previous = demo.generate_image, []

    class RecordingPipeline:
        def __getattr__(self, name):
            return getattr(demo, name)

        def generate_image(self, inputs, index, image, previews):
            previous.append(image)
            return generate(inputs, index, image, previews)

    Runner(cast("Pipeline", RecordingPipeline())).run(job)
    (alone,) = Runner(demo).run(replace(job, passes=(first,))).images
    assert np.array_equal(alone[8:, 8:], pixels[8:, 8:])
    assert previous[0] is None
    assert previous[1].rgb == resize_lanczos(alone, 128, 128).tobytes()
