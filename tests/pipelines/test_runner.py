"""All passes of a job, and upscales, around a pipeline that records what it is given."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from jobs import change, make_job
from unets import WrappedUNet

from pipelines.cost import estimate_cost, estimate_passes
from pipelines.errors import Cancelled, DeviceLost, OutOfMemory
from pipelines.job import Pass, PreviousPass, RgbImage, UpscaleJob
from pipelines.pipeline import PassInputs, Pipeline
from pipelines.runner import Runner
from pipelines.steps import Part, Step, run_steps, take_steps
from pipelines.types import Progress

ENHANCE = Pass(96, 160, (2**32 - 1, 0), PreviousPass(), 0.5, 0.1, noise_seed=30)
ONE_PASS = make_job(64, 96, seeds=(5, 6))
JOB = replace(ONE_PASS, passes=(*ONE_PASS.passes, ENHANCE))


class FakePlan:
    """A plan of one step; the first sigma is the pass's width."""

    steps = 1

    def __init__(self, pass_):
        self.sigmas = (float(pass_.width), 0.0)


class RecordingPipeline:
    """Returns flat images, a shade lighter in each pass and image."""

    device = torch.device("cpu")

    def __init__(self):
        self.passes, self.images, self.active, self.failure = [], [], [], None
        self.parts = []  # that were computed

    def activate(self, job):
        self.active.append(job)

    def encode_pass(self, job, number):
        pass_ = job.passes[number]
        for part in range(2):
            assert (yield Part(lambda part=part: self._compute(pass_, part))) == part
        self.passes.append(pass_)
        return PassInputs(pass_, FakePlan(pass_), *[None] * 4)  # pyright: ignore[reportArgumentType]

    def _compute(self, pass_, part):
        self.parts.append((pass_.width, part))
        if self.failure is not None:
            raise self.failure
        return part

    def generate_image(self, inputs, index, previous, previews):
        self.images.append((index, previous))
        yield Step(Progress(index, 1, 1, 1.0))
        shade = 10 * len(self.passes) + index
        return np.full((inputs.pass_.height, inputs.pass_.width, 3), shade, np.uint8)


class Doubling:
    """An upscaler that repeats pixels, and adds 100 to them as its mark."""

    scale = 2

    def upscale_tiles(self, pixels):
        return (yield Part(lambda: (pixels.repeat(2, 0).repeat(2, 1) + 100).astype(np.uint8)))


@pytest.fixture
def pipeline() -> Any:
    return RecordingPipeline()


@pytest.fixture
def doubling() -> Any:
    return Doubling()


def test_the_second_pass_starts_from_the_first_ones_images_at_its_own_size(pipeline):
    steps = []
    output = Runner(pipeline).run(JOB, steps.append)
    assert pipeline.active == [JOB]
    assert pipeline.passes == [*JOB.passes]  # encoded once for both images
    (_, first), (_, second), (_, third), (_, fourth) = pipeline.images
    assert (first, third) == (None, None)
    assert [(image.width, image.height, image.rgb[0]) for image in (second, fourth)] == [
        (96, 160, 10),
        (96, 160, 21),
    ]
    assert [image.shape for image in output.images] == [(160, 96, 3)] * 2
    assert [image[0, 0, 0] for image in output.images] == [20, 21]
    assert [progress.image for progress in steps] == [0] * 6 + [1] * 2  # four of the first are for encoding


def test_the_images_of_a_job_can_be_generated_side_by_side(pipeline):
    run = Runner(pipeline).begin(JOB)
    output = run.finish(run_steps(run.images, together=True))
    assert [index for index, _ in pipeline.images] == [0, 1, 0, 1]
    assert [image.shape for image in output.images] == [(160, 96, 3)] * 2


def test_each_part_of_encoding_is_a_step_of_the_first_image_that_gets_to_it(pipeline):
    first, second, third = Runner(pipeline).begin(change(ONE_PASS, seeds=(1, 2, 3))).images
    encoding = [image.send(None) for image in (first, second, third)]
    assert [step.stage for step in encoding] == ["encode"] * 3
    assert pipeline.parts == []
    for step in encoding:
        take_steps([step])
    assert pipeline.parts == [(64, 0), (64, 1)]
    assert len(pipeline.passes) == 1
    assert first.send(None).stage == "draw"


def test_a_part_of_encoding_that_ran_out_of_memory_is_computed_again(pipeline):
    (image,) = Runner(pipeline).begin(change(ONE_PASS, seeds=(1,))).images
    take_steps([image.send(None)])
    step, pipeline.failure = image.send(None), torch.OutOfMemoryError()
    with pytest.raises(OutOfMemory):
        take_steps([step])
    pipeline.failure = None
    take_steps([step])
    assert pipeline.parts == [(64, 0), (64, 1), (64, 1)]
    assert image.send(None).stage == "draw"


def test_the_sigmas_are_the_last_passes(pipeline):
    assert Runner(pipeline).run(JOB, lambda _: None).sigmas == (96.0, 0.0)


def test_the_second_pass_uses_the_upscaling_network_only_on_request(pipeline, doubling):
    runner = Runner(pipeline, doubling)
    runner.run(JOB, lambda _: None)
    assert pipeline.images[1][1].rgb[0] == 10
    with_network = replace(ENHANCE, init=PreviousPass(network=True))
    runner.run(replace(JOB, passes=(JOB.passes[0], with_network)), lambda _: None)
    assert pipeline.images[5][1].rgb[0] == 30 + 100


@pytest.mark.parametrize(("network", "shade"), [(False, 50), (True, 150)])
def test_an_upscale_uses_the_network_that_is_loaded_or_lanczos(pipeline, doubling, network, shade):
    runner = Runner(pipeline, doubling if network else None)
    output = runner.run(UpscaleJob(RgbImage(8, 4, bytes([50]) * 96), 12, 6))
    (image,) = output.images
    assert image.shape == (6, 12, 3)
    assert (image == shade).all()
    assert output.sigmas == ()
    assert pipeline.passes == []


def test_an_upscale_can_be_cancelled(pipeline, doubling):
    def cancel(progress):
        raise Cancelled(f"{progress.step} of {progress.steps}")

    work = UpscaleJob(RgbImage(8, 4, bytes([50]) * 96), 12, 6)
    with pytest.raises(Cancelled, match="1 of 1"):
        Runner(pipeline, doubling).run(work, cancel)


def test_an_error_after_which_the_device_is_unusable_is_device_lost(pipeline, monkeypatch):
    pipeline.failure = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="CUDA error"):
        Runner(pipeline).run(JOB)
    monkeypatch.setattr("pipelines.device.is_device_lost", lambda device: True)
    with pytest.raises(DeviceLost, match="cpu: CUDA error: an illegal memory access"):
        Runner(pipeline).run(JOB)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_device_that_fails_in_a_step_is_lost(demo, monkeypatch, part):
    def fail(*_args, **_kwargs):
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr("pipelines.device.is_device_lost", lambda device: True)
    broken = (
        {"unet": WrappedUNet(demo.weights.unet, fail)}
        if part == "unet"
        else {"vae": SimpleNamespace(decode=fail, to=lambda dtype: None)}
    )
    run = Runner(Pipeline(replace(demo.weights, **broken))).begin(make_job(64, 64, steps=1))
    with pytest.raises(DeviceLost, match="cpu: CUDA error: unspecified launch failure"):
        run_steps(run.images)


def test_the_demo_model_enhances(demo):
    first = change(JOB, width=64, height=64, seeds=(5,)).passes[0]
    second = replace(ENHANCE, width=96, height=96, seeds=(2**32 - 1,))
    progress = []
    job = replace(JOB, passes=(first, second))
    (image,) = Runner(demo).run(job, progress.append).images
    assert image.shape == (96, 96, 3)
    assert image.std() > 1
    done = [step.done for step in progress]
    assert done == sorted(done)
    begun = [step.done for step in progress if step.step == 1]
    assert begun[0] == 0
    assert begun[-1] == pytest.approx(estimate_passes(job)[0] / estimate_cost(job))


def test_the_steps_of_an_enhanced_image_name_their_stages(demo):
    second = Pass(96, 96, (1,), PreviousPass(), 0.5)
    job = make_job(64, 64, steps=2)
    (image,) = Runner(demo).begin(replace(job, passes=(*job.passes, second))).images
    stages, answer = [], None
    try:
        while True:
            step = image.send(answer)
            stages.append((step.stage, step.rows))
            (answer,) = take_steps([step])
    except StopIteration:
        pass
    first = [("encode", 1), ("draw", 2), ("draw", 2), ("decode", 1)]
    assert stages == [*first, ("encode", 1), ("encode", 1), ("draw", 2), ("decode", 1)]
