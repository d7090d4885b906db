"""Jobs with reference images on the demo model: every kind of pass, and what stays as it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from jobs import make_job
from unets import WrappedUNet, list_scales

from demo.checkpoint import DEMO, INPAINTING, VIBE
from pipelines.adapters.vibe import load_vibe
from pipelines.errors import PipelineError
from pipelines.job import Character, Guidance, InitImage, PreviousPass, Prompts, RgbImage, Vibe, VibeJob
from pipelines.pipeline import Pipeline
from pipelines.runner import Runner
from pipelines.steps import run_steps
from pipelines.weights.load import load_weights

SIDE = 96
REFERENCE = RgbImage(448, 448, bytes((200, 40, 45)) * 448 * 448)
VIBES = (Vibe(REFERENCE, 1.0), Vibe(REFERENCE, -0.3, 0.25))


class Recorder(WrappedUNet):
    """A UNet that records the scales of the images of each row of each pass."""

    def __init__(self, unet):
        super().__init__(unet, self.record)
        self.rows = []

    def record(self, unet, sample, embedding, context, *inputs):
        self.rows.extend(list_scales(context))
        return unet(sample, embedding, context, *inputs)


@pytest.fixture(scope="module")
def pipeline():
    weights = load_weights(DEMO, inpainting=INPAINTING)
    unets = [weights.unet, weights.inpainting]
    vibe = load_vibe(VIBE, None, unets, weights.device, weights.dtype)
    recorders = {name: Recorder(getattr(weights, name)) for name in ("unet", "inpainting")}
    return Pipeline(replace(weights, **recorders), vibe=vibe)


def list_rows(pipeline):
    rows = [*pipeline.weights.unet.rows, *pipeline.weights.inpainting.rows]
    pipeline.weights.unet.rows.clear()
    pipeline.weights.inpainting.rows.clear()
    return rows


def make(**changes):
    return make_job(SIDE, SIDE, steps=2, **changes)


def read_init(mask=None):
    return InitImage(RgbImage(SIDE, SIDE, bytes(3 * SIDE * SIDE)), mask)


MASK = bytes(255 * (k % 2) for k in range((SIDE // 8) ** 2))
PLACES = Prompts(
    "2girls", "bad", characters=(Character("a", "", 0.2, 0.5), Character("b", "worse", 0.8, 0.5))
)
JOBS = {
    "text to image": {},
    "img2img": {"init": read_init(), "strength": 0.7},
    "infill": {"init": read_init(MASK)},
    "smea": {"smea": "smea"},
    "pyramid": {"pyramid": 1},
    "deep shrink": {"deep_shrink": 1},
    "uncond scale": {"guidance": Guidance(5.0, uncond_scale=0.5)},
    "cond alone": {"guidance": Guidance(1.0)},
    "characters by place": {"prompts": PLACES},
    "mix": {"prompts": Prompts("cat|dog:2", "bad")},
}


@pytest.mark.parametrize("name", JOBS)
def test_every_row_of_a_job_attends_to_all_its_images(pipeline, name):
    job = make(**JOBS[name])
    list_rows(pipeline)
    plain = pipeline.run(job).images[0]
    assert list_rows(pipeline) == []  # without images no row is asked to attend to any
    drawn = pipeline.run(replace(job, vibes=VIBES)).images[0]
    rows = list_rows(pipeline)
    assert rows
    assert set(rows) == {(1.0, -0.3)}
    assert not np.array_equal(drawn, plain)
    assert np.array_equal(pipeline.run(replace(job, vibes=(Vibe(REFERENCE, 0.0),))).images[0], plain)


def test_both_passes_of_enhance_have_the_images(pipeline):
    job = make(vibes=VIBES)
    second = replace(job.passes[0], init=PreviousPass(), strength=0.6)
    runner = Runner(pipeline)
    list_rows(pipeline)
    runner.run(replace(job, passes=(job.passes[0], second)))
    assert len(list_rows(pipeline)) == 2 * (2 + 2)  # two rows in each step of each pass


def test_an_encoded_image_gives_the_pixels_of_the_image(pipeline):
    runner = Runner(pipeline)
    encoded = runner.run(VibeJob("m", REFERENCE, 0.25)).vibe
    assert encoded is not None
    first, second = (
        runner.run(make(vibes=(Vibe(source, 0.8, 0.25),))).images[0] for source in (REFERENCE, encoded)
    )
    assert np.array_equal(first, second)


def test_jobs_with_and_without_images_share_passes(pipeline):
    jobs = make(), make(vibes=VIBES)
    starts = [pipeline.denoise_image(pipeline.begin_pass(job), 0) for job in jobs]
    list_rows(pipeline)
    plain, drawn = run_steps(starts, together=True)
    rows = list_rows(pipeline)
    alone = [pipeline.generate_latents(job)[0] for job in jobs]
    assert rows == [(), (), (1.0, -0.3), (1.0, -0.3)] * 2
    torch.testing.assert_close(plain, alone[0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(drawn, alone[1], atol=1e-3, rtol=1e-3)


def test_references_without_an_adapter_are_an_error(demo):
    with pytest.raises(PipelineError, match="no image adapter for vibe transfer"):
        demo.run(make(vibes=VIBES))
