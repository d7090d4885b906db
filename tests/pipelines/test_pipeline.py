from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from jobs import change, make_job

from pipelines.errors import Cancelled, NotFinite
from pipelines.image.preview import fit_preview, make_preview
from pipelines.image.vae import VaeCodec, tile_starts, to_pixels
from pipelines.job import Guidance, Prompts
from pipelines.pipeline import Pipeline

JOB = make_job(128, 192, Prompts("1girl, smile", "lowres"), guidance=Guidance(5.0), seeds=(11,))


def test_a_job_becomes_a_picture_of_its_size_that_follows_its_seed_and_its_words(demo):
    (picture,) = demo.run(JOB).images
    assert picture.shape == (192, 128, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 5
    for other in (change(JOB, seeds=(12,)), change(JOB, prompts=Prompts("1boy", "lowres"))):
        assert not np.array_equal(demo.run(other).images[0], picture)


@pytest.mark.parametrize("sampler", ["k_euler", "k_euler_ancestral", "k_dpmpp_2m_sde"])
def test_image_one_of_two_is_the_solo_picture_of_the_next_seed(demo, sampler):
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


def test_the_network_is_told_height_before_width_and_a_whole_picture(demo):
    told = []

    def watched(sample, timestep, context, added_cond_kwargs, halvings):
        told.append(added_cond_kwargs["time_ids"])
        return demo.weights.unet(sample, timestep, context, added_cond_kwargs)

    Pipeline(replace(demo.weights, unet=watched)).generate_latents(change(JOB, steps=1))
    assert told[0].tolist() == [[192, 128, 0, 0, 192, 128]] * 2


def test_a_run_tells_every_evaluation_and_stops_when_told_to(demo):
    seen = []
    demo.generate_latents(JOB, seen.append)
    assert [(step.image, step.step, step.steps) for step in seen] == [(0, n, 4) for n in (1, 2, 3, 4)]

    def stop(step):
        if step.step == 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        demo.generate_latents(JOB, stop)


def test_a_finite_stand_in_for_infinity_gives_another_picture(demo):
    plain = Pipeline(demo.weights, sigma_max=14.6)
    assert not np.array_equal(plain.run(JOB).images[0], demo.run(JOB).images[0])


def test_a_network_that_fails_is_no_black_picture(demo):
    room = VaeCodec(demo.weights.vae, 0.13025, torch.float32)
    with pytest.raises(NotFinite, match="network"):
        room.decode(torch.full((4, 8, 8), float("nan")))


class Fragile:
    """A VAE that overflows in half precision."""

    def __init__(self):
        self.dtype, self.asked = torch.bfloat16, []

    def encode(self, picture):
        raise AssertionError("nothing is encoded here")

    def to(self, dtype):
        self.dtype = dtype

    def decode(self, latents):
        self.asked.append(latents.dtype)
        value = 0.5 if self.dtype == torch.float32 else float("nan")
        return torch.full((1, 3, 8 * latents.shape[-2], 8 * latents.shape[-1]), value)


def test_a_vae_that_overflows_is_asked_again_in_float32_and_put_back():
    vae = Fragile()
    picture = VaeCodec(vae, 1.0, torch.bfloat16).decode(torch.zeros(4, 8, 8))
    assert int(picture[0, 0, 0]) == 191
    assert vae.asked == [torch.bfloat16, torch.float32]
    assert vae.dtype == torch.bfloat16


class Repeating:
    """A VAE whose every latent pixel becomes an 8x8 square: what it decodes does not depend on where tiles lie."""

    def to(self, dtype):
        pass

    def encode(self, picture):
        raise AssertionError("nothing is encoded here")

    def decode(self, latents):
        return latents[:, :3].repeat_interleave(8, -1).repeat_interleave(8, -2)


@pytest.mark.parametrize(("height", "width"), [(200, 200), (128, 300), (100, 400)])
def test_tiles_join_without_a_trace(height, width):
    latents = torch.rand(4, height, width)
    picture = VaeCodec(Repeating(), 1.0, torch.float32).decode(latents)
    whole = to_pixels(Repeating().decode(latents[None])[0])
    assert np.abs(picture.astype(int) - whole).max() <= 1  # rounding where weights were summed


def test_tiles_cover_a_side_and_overlap():
    assert tile_starts(100) == [0]
    for length in range(129, 600):
        places = tile_starts(length)
        assert places[0] == 0
        assert places[-1] == length - 128
        assert all(right - left <= 96 for left, right in pairwise(places))


def test_previews_are_fitted_to_the_decoder_at_hand():
    matrix = fit_preview(lambda latents: Repeating().decode(latents[None])[0] * 0.5 + 0.1)
    latents = torch.rand(4, 6, 5) - 0.5
    expected = to_pixels(latents[:3] * 0.5 + 0.1)
    assert np.abs(make_preview(latents, matrix).astype(int) - expected).max() <= 1
