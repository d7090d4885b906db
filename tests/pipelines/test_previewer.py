"""Previews: what they show, that they change no pixel, and what they may cost."""

import threading
from concurrent.futures import Future
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from jobs import make_job
from PIL import Image
from waiting import LIMIT, wait_until

from pipelines import previewer
from pipelines.job import Guidance, InitImage, PreviousPass, Prompts, RgbImage
from pipelines.previewer import Previewer, PreviewRun
from pipelines.runner import Runner
from pipelines.sampling.prediction import scaled_linear

CPU = torch.device("cpu")
TABLE = scaled_linear(zsnr=True)
PROMPTS = Prompts("1girl, red hair, blue background", "lowres")
GRAY = RgbImage(128, 192, bytes([90]) * (128 * 192 * 3))
MASK = bytes([255 if column < 8 else 0 for _ in range(24) for column in range(16)])


def make_demo_job(**changes):
    options = {"seeds": (11,), "steps": 3} | changes
    return make_job(128, 192, PROMPTS, guidance=Guidance(5.0), **options)


TEXT_TO_IMAGE = make_demo_job(seeds=(11, 12))
ENHANCE = replace(
    TEXT_TO_IMAGE,
    passes=(*TEXT_TO_IMAGE.passes, replace(TEXT_TO_IMAGE.passes[0], width=192, height=288, init=PreviousPass(), strength=0.7)),
)  # fmt: skip
JOBS = {
    "two images": TEXT_TO_IMAGE,
    "two evaluations a step": make_demo_job(sampler="k_heun"),
    "a Brownian tree": make_demo_job(sampler="k_dpmpp_2m_sde"),
    "adaptive steps": make_demo_job(sampler="k_dpm_adaptive"),
    "img2img": make_demo_job(init=InitImage(GRAY), strength=0.7),
    "infill": make_demo_job(init=InitImage(GRAY, MASK)),
    "smea": make_demo_job(smea="smea"),
    "pyramid": make_demo_job(pyramid=1),
    "enhance": ENHANCE,
}


@pytest.fixture
def unlimited(monkeypatch):
    """Let previews take any time."""
    monkeypatch.setattr(previewer, "SHARE", float("inf"))


class DirectExecutor:
    """Runs what is submitted at once."""

    def submit(self, function, *args):
        future = Future()
        try:
            future.set_result(function(*args))
        except ValueError as error:
            future.set_exception(error)
        return future


@pytest.fixture
def complete(unlimited, monkeypatch):
    """Let no preview be left out because the one before it is not done."""
    monkeypatch.setattr(previewer, "ThreadPoolExecutor", lambda *_, **__: DirectExecutor())


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_previews_change_no_pixel_and_follow_the_steps(demo, unlimited, job):
    previews, images = [], len(job.passes[0].seeds)
    runner = Runner(demo)
    expected = runner.run(job)
    output = runner.run(job, None, previews.append)
    for image, other in zip(output.images, expected.images, strict=True):
        assert np.array_equal(image, other)
    wait_until(lambda: {preview.image for preview in previews} == set(range(images)))
    for image in range(images):
        steps = [preview.step for preview in previews if preview.image == image]
        assert steps == sorted(set(steps))
        assert steps[0] == 1
    sizes = {Image.open(BytesIO(preview.jpeg)).size for preview in previews}
    assert sizes <= {(pass_.width // 2, pass_.height // 2) for pass_ in job.passes}


def test_the_steps_of_a_second_pass_follow_those_of_the_first(demo, complete):
    previews = []
    Runner(demo).run(ENHANCE, None, previews.append)
    # strength 0.7 of three steps is all three of them
    assert {preview.step for preview in previews} == {1, 2, 3, 4, 5, 6}
    large = {preview.step for preview in previews if Image.open(BytesIO(preview.jpeg)).size == (96, 144)}
    assert large == {4, 5, 6}


def test_the_last_preview_resembles_the_image(demo, complete):
    previews = []
    (image,) = (
        Runner(demo).run(make_demo_job(init=InitImage(GRAY, MASK), steps=8), None, previews.append).images
    )
    assert previews[-1].step == 8
    preview = np.asarray(Image.open(BytesIO(previews[-1].jpeg))).astype(int)
    small = np.asarray(Image.fromarray(image).resize((64, 96), Image.Resampling.BOX)).astype(int)
    # the part that is kept is gray in the preview as well, because it shows the blended estimate
    assert np.abs(preview[:, 40:] - small[:, 40:]).mean() < 40
    assert preview[:, 40:].std() < preview[:, :28].std()


class FakePreviewer:
    """Previews whose cost is set; they are done at once, or never if `is_stuck`."""

    def __init__(self, seconds):
        self.seconds, self.seconds_per_latent, self.is_stuck = seconds, 0.0, False
        self.started = 0

    def start(self, estimate, deliver):
        self.started += 1
        future: Future[float] = Future()
        if not self.is_stuck:
            deliver(b"jpeg")
            future.set_result(self.seconds)
        return future

    def settle(self, preview, latents):
        self.seconds_per_latent = preview.result() / latents
        return preview.result()


@pytest.fixture
def clock(monkeypatch):
    """A list whose only entry is the time."""
    now = [0.0]
    monkeypatch.setattr(previewer, "perf_counter", lambda: now[0])
    return now


def show_all(run, clock, steps, images, seconds, before=0):
    """Show the estimates of a pass, after `before` steps of others, whose evaluations take `seconds`."""
    plan = plan_of(steps)
    for sigma in plan.sigmas[:-1]:
        for image in range(images):
            clock[0] += seconds
            run.show(image, torch.zeros(4, 8, 8), sigma, before + plan.find_step(sigma))


def plan_of(steps):
    from pipelines.plan import make_plan

    job = make_job(64, 64, steps=steps)
    return make_plan(job, job.passes[0], TABLE)


@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("cost", [0.001, 0.05, 0.5, 5.0])
def test_previews_take_at_most_their_share_of_the_time(clock, images, cost):
    fake: Any = FakePreviewer(cost)
    previews = []
    fake.seconds_per_latent = cost / 64  # measured before
    run = PreviewRun(fake, images, previews.append)
    show_all(run, clock, 50, images, seconds=0.4)
    assert fake.started * cost <= previewer.SHARE * clock[0]
    counts = [sum(preview.image == image for preview in previews) for image in range(images)]
    assert max(counts) - min(counts) <= 1
    # no more than one that would have fitted is missing for each image
    assert fake.started >= min(50 * images, previewer.SHARE * clock[0] / cost - 2 * images)
    if cost == 0.001:
        assert [preview.step for preview in previews][:images] == [1] * images


def test_a_cost_that_grows_ends_the_previews(clock):
    fake: Any = FakePreviewer(0.01)
    run = PreviewRun(fake, 1, lambda _: None)
    show_all(run, clock, 10, 1, seconds=1.0)
    assert fake.started == 10
    fake.seconds = 60.0
    show_all(run, clock, 10, 1, seconds=1.0, before=10)
    assert fake.started == 11


def test_an_estimate_is_left_out_while_the_last_preview_is_not_done(clock):
    fake: Any = FakePreviewer(0.0)
    fake.is_stuck = True
    show_all(PreviewRun(fake, 2, lambda _: None), clock, 10, 2, seconds=1.0)
    assert fake.started == 2


def test_an_error_ends_the_previews_and_not_the_job(demo, unlimited, caplog):
    calls = []

    def decode(latents):
        calls.append(latents.shape)
        if len(calls) > 2:  # the first two measure the cost
            raise RuntimeError("out of memory")
        return torch.zeros(8, 8, 3, dtype=torch.uint8)

    previews = []
    assert Runner(demo, None, decode).run(TEXT_TO_IMAGE, None, previews.append).images
    assert len(calls) == 3
    assert previews == []
    assert [record.getMessage() for record in caplog.records] == [
        "no more previews of this request: out of memory"
    ]


def test_an_error_of_the_receiver_ends_the_previews_and_not_the_job(demo, complete, caplog):
    def refuse(_):
        raise ValueError("closed")

    assert Runner(demo).run(make_demo_job(steps=8), None, refuse).images
    assert "no more previews of this request: closed" in caplog.text


def test_previews_are_encoded_on_a_thread_of_their_own():
    decode = torch.zeros(4, 4, 3, dtype=torch.uint8)
    threads = []
    Previewer(lambda _: decode, CPU).start(
        torch.zeros(4, 4, 4), lambda _: threads.append(threading.current_thread().name)
    ).result(LIMIT)
    assert [name.partition("_")[0] for name in threads] == ["preview"]


def test_a_decoder_for_other_latents_differs_from_the_fitted_one(demo):
    assert demo.compare_preview(demo.fit_preview()) > 0.5
    noise = torch.randint(0, 256, (96, 96, 3), generator=torch.Generator().manual_seed(0))
    assert abs(demo.compare_preview(lambda _: noise)) < 0.1


class FakeEvent:
    """An event in the stream of cuda:1."""

    def __init__(self, enable_timing, blocking):
        assert enable_timing
        assert blocking  # the worker sleeps until it is reached
        self.is_waited_for = False

    def record(self, stream):
        assert stream == "stream of cuda:1"

    def synchronize(self):
        self.is_waited_for = True

    def elapsed_time(self, end):
        assert end.is_waited_for
        return 250_000.0


def test_on_a_gpu_a_preview_costs_the_time_between_two_events(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    timer = previewer.DeviceTimer(torch.device("cuda:1"))
    timer.stop()
    assert timer.wait() == 250.0
    timer = previewer.DeviceTimer(CPU)
    timer.stop()
    assert timer.wait() < 250.0
