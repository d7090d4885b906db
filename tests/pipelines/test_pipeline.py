from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from jobs import change, make_job, plan_first
from unets import WrappedUNet

from pipelines.errors import Cancelled, NotFinite
from pipelines.image.vae import TILES, VaeCodec, to_pixels
from pipelines.job import Guidance, Prompts
from pipelines.pipeline import Pipeline

JOB = make_job(128, 192, Prompts("1girl, smile", "lowres"), guidance=Guidance(5.0), seeds=(11,))


def test_an_image_has_the_jobs_size_and_depends_on_seed_and_prompt(demo):
    (image,) = demo.run(JOB).images
    assert image.shape == (192, 128, 3)
    assert image.dtype == np.uint8
    assert image.std() > 5
    for other in (change(JOB, seeds=(12,)), change(JOB, prompts=Prompts("1boy", "lowres"))):
        assert not np.array_equal(demo.run(other).images[0], image)


@pytest.mark.parametrize("sampler", ["k_euler", "k_euler_ancestral", "k_dpmpp_2m_sde"])
def test_the_second_of_two_images_equals_the_next_seeds_image(demo, sampler):
    pair = demo.run(change(JOB, sampler=sampler, seeds=(11, 12))).images
    solo = demo.run(change(JOB, sampler=sampler, seeds=(12,))).images
    assert np.array_equal(pair[1], solo[0])
    assert not np.array_equal(pair[0], pair[1])


def test_the_same_job_gives_the_same_pixels(demo):
    assert np.array_equal(demo.run(JOB).images[0], demo.run(JOB).images[0])


def test_shared_passes_agree_to_rounding(demo):
    shared = Pipeline(demo.weights, batching="shared")
    job = change(JOB, seeds=(11, 12))
    for ours, theirs in zip(shared.generate_latents(job), demo.generate_latents(job), strict=True):
        # float32 networks at another batch size: rounding of each step, amplified by guidance over four steps
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-3


def test_size_ids_are_height_then_width_without_a_crop(demo):
    size_ids = []

    class Recorder(WrappedUNet):
        def embed(self, timesteps, pooled, size_ids_):
            size_ids.append(size_ids_.tolist())
            return self._unet.embed(timesteps, pooled, size_ids_)

    recorder = Recorder(demo.weights.unet, lambda unet, *inputs: unet(*inputs))
    Pipeline(replace(demo.weights, unet=recorder)).generate_latents(change(JOB, steps=1))
    assert size_ids == [[192, 128, 0, 0, 192, 128]] * 2  # of the prompt and the negative prompt


def test_every_evaluation_is_reported_and_the_callback_can_stop_the_run(demo):
    steps = []
    demo.generate_latents(JOB, steps.append)
    assert [(step.image, step.step, step.steps) for step in steps] == [(0, n, 4) for n in (1, 2, 3, 4)]

    def stop(step):
        if step.step == 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        demo.generate_latents(JOB, stop)


@pytest.mark.parametrize("smea", ["off", "smea"])
@pytest.mark.parametrize("pyramid", [0, 1, 2])
def test_steps_on_downscaled_copies_are_reported_as_those_of_the_sampler(demo, pyramid, smea):
    job, steps = change(JOB, steps=8, pyramid=pyramid, smea=smea), []
    sigmas = plan_first(job, demo.table).sigmas
    demo.generate_latents(job, steps.append)
    assert [(step.step, step.sigma) for step in steps] == list(enumerate(sigmas[:-1], start=1))


def test_a_finite_sigma_max_gives_another_image(demo):
    plain = Pipeline(demo.weights, sigma_max=14.6)
    assert not np.array_equal(plain.run(JOB).images[0], demo.run(JOB).images[0])


def test_latents_that_are_not_finite_raise(demo):
    vae = VaeCodec(demo.weights.vae, 0.13025, torch.float32)
    with pytest.raises(NotFinite, match="network"):
        vae.decode(torch.full((4, 8, 8), float("nan")))


class OverflowingVae:
    """A VAE that overflows in half precision."""

    def __init__(self):
        self.dtype, self.asked = torch.bfloat16, []

    def encode(self, image):
        raise AssertionError("encode is not expected here")

    def to(self, dtype):
        self.dtype = dtype

    def decode(self, latents):
        self.asked.append(latents.dtype)
        value = 0.5 if self.dtype == torch.float32 else float("nan")
        return torch.full((1, 3, 8 * latents.shape[-2], 8 * latents.shape[-1]), value)


def test_a_vae_that_overflows_is_retried_in_float32_and_restored():
    vae: Any = OverflowingVae()
    image = VaeCodec(vae, 1.0, torch.bfloat16).decode(torch.zeros(4, 8, 8))
    assert int(image[0, 0, 0]) == 191
    assert vae.asked == [torch.bfloat16, torch.float32]
    assert vae.dtype == torch.bfloat16


def test_images_that_are_decoded_together_come_out_as_alone(demo):
    vae = VaeCodec(demo.weights.vae, demo.weights.architecture.latent_scale, torch.float32)
    latents = torch.randn(3, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    together = vae.decode_images(latents)
    for image, each in zip(together, latents, strict=True):
        assert np.abs(image.astype(int) - vae.decode(each)).max() <= 1  # sums are rounded in another order


class RepeatingVae:
    """A VAE that repeats each latent as an 8x8 square, so that tiling cannot change its result."""

    def to(self, dtype):
        pass

    def encode(self, image):
        raise AssertionError("encode is not expected here")

    def decode(self, latents):
        return latents[:, :3].repeat_interleave(8, -1).repeat_interleave(8, -2)


@pytest.mark.parametrize(("height", "width"), [(200, 200), (128, 300), (100, 400)])
def test_tiles_leave_no_seams(height, width):
    latents = torch.rand(4, height, width)
    vae: Any = RepeatingVae()
    image = VaeCodec(vae, 1.0, torch.float32).decode(latents)
    full = to_pixels(vae.decode(latents[None])[0])
    assert np.abs(image.astype(int) - full).max() <= 1  # rounding where weights were summed


def test_tiles_cover_a_side_and_overlap():
    assert TILES.find_starts(100) == [0]
    for length in range(129, 600):
        places = TILES.find_starts(length)
        assert places[0] == 0
        assert places[-1] == length - 128
        assert all(right - left <= 96 for left, right in pairwise(places))
