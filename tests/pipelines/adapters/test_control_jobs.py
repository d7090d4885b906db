"""Jobs with ControlNets on the demo model: every kind of pass, the shares of the steps, and what stays as it was."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from control_files import ARCHITECTURES, build_control, draw_map, name_control, save_control
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jobs import make_job
from sd15_files import small_sd15, write_small_sd15
from unets import WrappedUNet

from demo.checkpoint import DEMO, INPAINTING, VIBE
from pipelines.adapters.vibe import load_vibe
from pipelines.errors import NotFinite, UnusableFile
from pipelines.job import Character, Guidance, InitImage, PreviousPass, Prompts, RgbImage, Vibe
from pipelines.pipeline import Pipeline
from pipelines.plan import make_plan
from pipelines.runner import Runner
from pipelines.steps import run_steps
from pipelines.weights.load import load_weights

SIDE = 96


class Recorder(WrappedUNet):
    """A UNet that records the rows, the height and the heights of the residuals of each pass."""

    def __init__(self, unet):
        super().__init__(unet, self.record)
        self.passes = []

    def record(self, unet, sample, embedding, context, halvings, residuals):
        heights = None if residuals is None else [part.shape[-2] for part in residuals[0]]
        self.passes.append((len(sample), sample.shape[-2], heights))
        return unet(sample, embedding, context, halvings, residuals)


@pytest.fixture(scope="module")
def pipeline():
    weights = load_weights(DEMO, inpainting=INPAINTING)
    unets: Any = [weights.unet, weights.inpainting]
    vibe = load_vibe(VIBE, None, unets, weights.device, weights.dtype)
    recorders = {name: Recorder(getattr(weights, name)) for name in ("unet", "inpainting")}
    return Pipeline(replace(weights, **recorders), vibe=vibe)


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    """Name a ControlNet for the demo model as jobs do: with one control type, or a union with a mode."""
    folder, architecture = tmp_path_factory.mktemp("controls"), ARCHITECTURES["sdxl"]
    paths = {
        None: save_control(folder / "plain", build_control(architecture), architecture),
        6: save_control(folder / "union.safetensors", build_control(architecture, 6, seed=2), architecture),
    }

    def name(mode=None, seed=0, size=(SIDE, SIDE), **others):
        path = paths[None if mode is None else 6]
        return name_control(path, draw_map(*size, seed=seed), mode=mode, **others)

    return name


def list_passes(pipeline):
    found = [*pipeline.weights.unet.passes, *pipeline.weights.inpainting.passes]
    pipeline.weights.unet.passes.clear()
    pipeline.weights.inpainting.passes.clear()
    return found


def make(**changes):
    return make_job(SIDE, SIDE, **{"steps": 2, **changes})


def read_init(mask=None):
    return InitImage(RgbImage(SIDE, SIDE, bytes(3 * SIDE * SIDE)), mask)


MASK = bytes(255 * (k % 2) for k in range((SIDE // 8) ** 2))
PLACES = Prompts(
    "2girls", "bad", characters=(Character("a", "", 0.2, 0.5), Character("b", "worse", 0.8, 0.5))
)
JOBS = {
    "text to image": ({}, {12}),
    "img2img": ({"init": read_init(), "strength": 0.7}, {12}),
    "infill": ({"init": read_init(MASK)}, {12}),
    "smea": ({"smea": "smea"}, {12, 6}),
    "pyramid": ({"pyramid": 1}, {12, 6}),
    "deep shrink": ({"deep_shrink": 1}, {12}),
    "uncond scale": ({"guidance": Guidance(5.0, uncond_scale=0.5)}, {12}),
    "characters by place": ({"prompts": PLACES}, {12}),
    "vibe transfer": ({"vibes": (Vibe(RgbImage(448, 448, bytes(3 * 448 * 448)), 1.0),)}, {12}),
    "mix": ({"prompts": Prompts("cat|dog:2", "bad")}, {12}),
}
"""Jobs, and the heights of the latents that the network sees."""


@pytest.mark.parametrize("name", JOBS)
def test_every_row_of_a_job_is_conditioned(pipeline, control, name):
    changes, heights = JOBS[name]
    job = make(**changes)
    list_passes(pipeline)
    plain = pipeline.run(job).images[0]
    before = list_passes(pipeline)
    assert all(residuals is None for *_, residuals in before)
    conditioned = replace(job, controls=(control(), control(mode=4, strength=0.5)))
    drawn = pipeline.run(conditioned).images[0]
    found = list_passes(pipeline)
    assert [(rows, height) for rows, height, _ in found] == [(rows, height) for rows, height, _ in before]
    assert {height for _, height, _ in found} == heights
    assert all(residuals is not None and residuals[0] == height for _, height, residuals in found)
    assert not np.array_equal(drawn, plain)
    without = replace(job, controls=(control(strength=0.0),))
    assert np.array_equal(pipeline.run(without).images[0], plain)  # and networks are loaded by now


def test_deep_shrink_shrinks_the_networks_features_likewise(pipeline, control):
    list_passes(pipeline)
    pipeline.run(make(deep_shrink=1, controls=(control(),)))
    assert [residuals for *_, residuals in list_passes(pipeline)] == [
        [12, 12, 4, 4, 2, 2],
        [12, 12, 6, 6, 3, 3],
    ]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0.0, 1.0, "11111"), (0.2, 0.6, "01100"), (0.0, 0.5, "11000"), (0.3, 1.0, "00111"), (0.5, 0.5, "00000")],
)
def test_start_and_end_are_shares_of_the_steps(pipeline, control, start, end, expected):
    list_passes(pipeline)
    job = make(steps=5, controls=(control(start=start, end=end),))
    pipeline.generate_latents(job)
    found = list_passes(pipeline)
    assert "".join("01"[residuals is not None] for *_, residuals in found) == expected


def test_the_map_is_fitted_to_each_pass_of_enhance(pipeline, control):
    job = make(controls=(control(size=(200, 100)),))
    second = replace(job.passes[0], width=128, height=160, init=PreviousPass(), strength=0.6)
    list_passes(pipeline)
    Runner(pipeline).run(replace(job, passes=(job.passes[0], second)))
    found = [(height, residuals and residuals[0]) for _, height, residuals in list_passes(pipeline)]
    assert found == [(12, 12)] * 2 + [(20, 20)] * 2


def test_only_rows_with_the_same_networks_share_a_pass(pipeline, control):
    others = ((), (control(),), (control(seed=1),), (control(strength=0.5),))
    jobs = [make(controls=controls) for controls in others]
    starts = [pipeline.denoise_image(pipeline.begin_pass(job), 0) for job in jobs]
    list_passes(pipeline)
    found = run_steps(starts, together=True)
    rows = [count for count, *_ in list_passes(pipeline)]
    alone = [pipeline.generate_latents(job)[0] for job in jobs]
    assert rows == [2, 4, 2] * 2
    assert torch.equal(found[0], alone[0])
    for shared, expected in zip(found, alone, strict=True):
        torch.testing.assert_close(shared, expected, atol=1e-3, rtol=1e-3)


def test_a_strength_beyond_the_dtype_is_an_error(pipeline, control):
    with pytest.raises(NotFinite):
        pipeline.run(make(controls=(control(strength=1e38),)))


def test_a_union_needs_a_mode(pipeline, control):
    union = replace(control(mode=1), mode=None)
    with pytest.raises(UnusableFile, match="ControlNet 'union': is a union of 6 control types and no mode"):
        pipeline.run(make(controls=(union,)))


def test_a_run_equals_that_of_diffusers_by_hand(tmp_path):
    """Five Euler steps of Stable Diffusion 1, conditioned in the second and the third."""
    architecture, size = small_sd15(), (64, 96)
    pipeline = Pipeline(load_weights(write_small_sd15(tmp_path / "model.safetensors")))
    network = build_control(architecture)
    path = save_control(tmp_path / "control.safetensors", network, architecture, "original")
    image = draw_map(*size)
    controls = (name_control(path, image, strength=0.8, start=0.2, end=0.6),)
    job = replace(
        make_job(*size, Prompts("1girl, smile", "lowres"), 5, guidance=Guidance(4.0), seeds=(3,)),
        controls=controls,
    )
    (found,) = pipeline.generate_latents(job)
    config: dict[str, Any] = dict(architecture.unet)
    unet = UNet2DConditionModel(**config).eval()
    own: Any = pipeline.weights.unet
    unet.load_state_dict(own.module.state_dict())
    sigmas = make_plan(job, job.passes[0], pipeline.table).sigmas
    x = torch.randn((4, 12, 8), generator=torch.Generator().manual_seed(3)) * sigmas[0]
    encoded = pipeline._prompts.encode(job.prompts)
    context = torch.stack([encoded.positive.context, encoded.negative.context])
    pixels = torch.tensor(np.frombuffer(image.rgb, np.uint8).reshape(96, 64, 3).copy()).permute(2, 0, 1) / 255
    for step, (sigma, target) in enumerate(pairwise(sigmas), 1):
        scaled = (x / (sigma**2 + 1) ** 0.5).expand(2, *x.shape)
        inputs = scaled, torch.tensor([pipeline.table.timestep(sigma)] * 2), context
        down, middle = None, None
        with torch.inference_mode():
            if step in (2, 3):
                down, middle = network(*inputs, pixels.expand(2, -1, -1, -1), 0.8, return_dict=False)
            residuals: Any = {
                "down_block_additional_residuals": down,
                "mid_block_additional_residual": middle,
            }
            cond, uncond = unet(*inputs, **residuals).sample
        x = x + (uncond + 4.0 * (cond - uncond)) * (target - sigma)
    plain = pipeline.generate_latents(replace(job, controls=()))[0]
    assert (found - plain).abs().max() > 0.5
    # float32: one evaluation agrees to 2e-6; guidance and five steps from sigma 14.6 multiply that
    torch.testing.assert_close(found, x, atol=2e-5 * sigmas[0], rtol=0)
