"""Memory plans: of full-size SDXL, whose networks are empty here, and carried out by the demo model."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from adapter_files import build_unet
from jobs import make_job

from demo.checkpoint import CYANOTYPE_LORA, DEMO, INPAINTING
from pipelines.errors import PipelineError
from pipelines.image.vae import SMALL_TILES, TILES
from pipelines.job import Guidance, Lora, Prompts
from pipelines.memory_plan import MemoryPlan, count_peak, plan_memory
from pipelines.pipeline import Pipeline
from pipelines.speed import SpeedChoices
from pipelines.weights.architecture import sdxl
from pipelines.weights.checkpoint import fingerprint
from pipelines.weights.load import load_weights
from pipelines.weights.networks import build_networks
from pipelines.weights.placement import choose_plan, measure_sizes

JOB = make_job(64, 96, Prompts("1girl, smile", "lowres"), 3, guidance=Guidance(5.0), seeds=(2,))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def full() -> Any:
    architecture = sdxl()
    unet, vae, encoders = build_networks(architecture)
    return SimpleNamespace(
        unet=unet, vae=vae, text_encoders=encoders, inpainting=None, architecture=architecture
    )


@pytest.fixture(scope="module")
def sizes(full):
    return measure_sizes(full, torch.float16, torch.bfloat16)


def test_sizes_are_those_of_the_released_model(sizes):
    # performance.md: UNet 5.13 GB, of it 340.8 M weights project prompts; encoders 1.64 GB, VAE 0.17 GB
    found = sizes.unet, sizes.projections, sizes.encoders, sizes.vae
    assert found == (
        pytest.approx(5.135e9, rel=0.001), 2 * 340_787_200, pytest.approx(1.635e9, rel=0.001), pytest.approx(0.167e9, rel=0.01),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("gigabytes", "limit", "encoders", "projections", "tiling"),
    [
        (None, 9.0e9, False, False, TILES),
        (24, 22e9, False, False, TILES),
        (16, 14.9e9, False, False, TILES),
        (12, 11.2e9, False, False, TILES),
        (8, 7.5e9, True, False, TILES),
        (6, 5.6e9, True, True, SMALL_TILES),
    ],
)
def test_each_size_of_card_has_its_plan(full, gigabytes, limit, encoders, projections, tiling):
    plan = choose_plan(full, CPU, torch.float16, torch.bfloat16, gigabytes)
    assert plan.peak <= limit
    found = plan.offloads_encoders, plan.offloads_projections, plan.tiling
    assert found == (encoders, projections, tiling)
    assert plan.streamed == 0


def test_quantized_blocks_count_with_their_bytes(full, sizes):
    small: Any = SimpleNamespace(**vars(full) | {"unet": build_unet("sdxl")})
    found = measure_sizes(small, torch.float32, torch.bfloat16, is_quantized=True)
    small.unet.quantize("int8", CPU)
    module = small.unet.module
    assert found.unet == sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    found = measure_sizes(full, torch.float16, torch.bfloat16, is_quantized=True)
    assert sizes.unet - found.unet == sizes.blocks - found.blocks == pytest.approx(1.84e9, rel=0.01)
    plan = choose_plan(full, CPU, torch.float16, torch.bfloat16, 6, is_quantized=True)
    assert not plan.offloads_unet


@pytest.mark.parametrize("budget", [4.5e9, 3.5e9, 2.5e9])
def test_smaller_cards_stream_just_what_does_not_fit(sizes, budget):
    plan = plan_memory(sizes, int(budget))
    assert 0.99 * budget < plan.peak <= budget
    assert 0 < plan.streamed < sizes.blocks


def test_the_smallest_plan_is_made_for_any_card(sizes):
    plan = plan_memory(sizes, 0)
    assert plan.streamed == sizes.blocks
    assert count_peak(sizes, plan) == plan.peak < 2.1e9


def test_a_plan_says_what_is_where():
    plan = MemoryPlan(True, True, 250_000_000, SMALL_TILES, 4_700_000_000)
    assert str(plan) == (
        "in CPU memory: text encoders, prompt projections, 0.2 GB of the UNet; the VAE in tiles of 512 pixels; "
        "about 4.7 GB for a picture of a megapixel"
    )
    assert str(MemoryPlan(peak=9_000_000_000)).startswith("all weights on the device; about 9.0 GB")


@pytest.fixture
def load(monkeypatch):
    """Return a function that loads the demo model with a plan."""

    def load(plan, **choices):
        monkeypatch.setattr("pipelines.weights.load.choose_plan", lambda *_: plan)
        return Pipeline(load_weights(DEMO, inpainting=INPAINTING, speed=SpeedChoices(**choices)))

    return load


@pytest.mark.parametrize(
    "plan",
    [
        MemoryPlan(True),
        MemoryPlan(True, True),
        MemoryPlan(True, True, 1_500_000),
        MemoryPlan(True, True, 10**9),
    ],
)
def test_pictures_are_the_same_wherever_weights_wait(demo, load, plan):
    pipeline = load(plan)
    for _ in range(2):
        assert np.array_equal(pipeline.run(JOB).images[0], demo.run(JOB).images[0])
    offload = pipeline.weights.offload
    assert offload.device_size < offload.size
    pipeline.move(CPU)
    assert np.array_equal(pipeline.run(JOB).images[0], demo.run(JOB).images[0])


def test_loras_change_weights_that_wait(load, demo):
    lora = Lora(CYANOTYPE_LORA.stem, CYANOTYPE_LORA, fingerprint(CYANOTYPE_LORA), 1.0, 1.0)
    job = replace(JOB, loras=(lora,))
    pipeline = load(MemoryPlan(True, True, 10**9))
    for each in (JOB, job, JOB, job, JOB):  # at last without, for the tests that compare weights
        assert np.array_equal(pipeline.run(each).images[0], demo.run(each).images[0])


def test_quantized_weights_stay_while_others_wait_and_are_refused_where_they_would_wait(load):
    expected = load(MemoryPlan(), weights="int8").run(JOB).images[0]
    pipeline = load(MemoryPlan(True, True), weights="int8")
    assert np.array_equal(pipeline.run(JOB).images[0], expected)
    with pytest.raises(PipelineError, match=r'speed\.weights = "int8"'):
        load(MemoryPlan(True, True, 1_500_000), weights="int8")


@pytest.mark.slow
def test_small_tiles_change_a_picture_little(load, demo):
    job = make_job(704, 704, Prompts("1girl, smile", "lowres"), 6, guidance=Guidance(5.0))
    (latents,) = demo.generate_latents(job)
    with torch.inference_mode():
        tiled, plain = (
            each._vae.decode(latents).astype(int) for each in (load(MemoryPlan(tiling=SMALL_TILES)), demo)
        )
    difference = np.abs(tiled - plain)
    assert difference.max() > 0
    # group normalization sees one tile at a time, and the demo's VAE has few channels in a group
    assert difference.mean() < 4.0
