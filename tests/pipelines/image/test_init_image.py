"""Runs that start from a picture, on the demo's networks."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from demo.captions import random_scene
from demo.checkpoint import build_demo
from pipelines.image.init_image import InitLatents
from pipelines.image.vae import VaeCodec, to_pixels, to_tensor
from pipelines.job import Guidance, InitImage, Job, Prompts, RgbImage
from pipelines.pipeline import Pipeline
from pipelines.weights.load import load_weights

RNG = np.random.default_rng(3)
PIXELS = random_scene(RNG).draw(128, 192, RNG)
PICTURE = RgbImage(128, 192, PIXELS.tobytes())
JOB = Job(
    "m", Prompts("1girl"), 128, 192, 28, "k_euler", "native", Guidance(1.0), seeds=(3, 4), source=InitImage(PICTURE)
)  # fmt: skip


def redrawn(demo, strength, **changes):
    source = InitImage(PICTURE, strength, **changes)
    return demo.run(replace(JOB, source=source, seeds=(3,)))[0]


def change(a, b):
    return float(np.abs(a.astype(int) - b).mean())


def test_pixels_and_bytes_are_the_same_picture():
    assert (to_pixels(to_tensor(PICTURE)) == PIXELS).all()


def test_a_hundredth_of_strength_returns_the_picture_within_the_vaes_own_error(demo):
    room = VaeCodec(demo.weights.vae, demo.weights.architecture.latent_scale, torch.float32)
    with torch.inference_mode():
        through = room.decode(room.encode(to_tensor(PICTURE)))
    assert change(redrawn(demo, 0.01), through) < 4  # the lowest rung, 0.03, moves a latent by as much


def test_the_more_strength_the_more_changes(demo):
    changes = [change(redrawn(demo, strength), PIXELS) for strength in (0.01, 0.5, 0.95)]
    assert changes[0] < changes[1] < changes[2]


def test_noise_of_its_own_seed_changes_the_start(demo):
    plain, noisy = redrawn(demo, 0.3), redrawn(demo, 0.3, noise=0.3, noise_seed=8)
    assert change(plain, noisy) > 0
    assert change(noisy, redrawn(demo, 0.3, noise=0.3, noise_seed=9)) > 0
    assert change(plain, redrawn(demo, 0.3, noise_seed=9)) == 0


def test_the_extra_noise_is_absolute_and_each_images_own():
    latents = torch.zeros(4, 32, 32)
    origin = InitLatents(InitImage(PICTURE, noise=0.2, noise_seed=5), latents)
    first, second = origin.add_noise(0), origin.add_noise(1)
    assert float(first.std()) == pytest.approx(0.2, rel=0.05)
    assert not torch.equal(first, second)
    assert torch.equal(second, InitLatents(InitImage(PICTURE, noise=0.2, noise_seed=6), latents).add_noise(0))
    start = torch.randn(latents.shape, generator=torch.Generator().manual_seed(5))
    assert (
        abs(float((start * first).mean())) < 0.02
    )  # of the same seed, yet another draw: standard error 0.003


def test_what_the_mask_keeps_comes_back(demo):
    mask = np.zeros((24, 16), np.uint8)
    mask[:, 8:] = 255
    source = InitImage(PICTURE, 1.0, mask=mask.tobytes())
    drawn = demo.generate_latents(replace(JOB, source=source))
    room = VaeCodec(demo.weights.vae, demo.weights.architecture.latent_scale, torch.float32)
    with torch.inference_mode():
        own = room.encode(to_tensor(PICTURE))
    for latents in drawn:
        assert torch.equal(latents[..., :8], own[..., :8])
        assert float((latents[..., 8:] - own[..., 8:]).abs().mean()) > 0.1


class Folding:
    """A VAE whose latents are means of 8x8 squares: what it encodes does not depend on where tiles lie."""

    def __init__(self, overflows=False):
        self.overflows, self.dtype = overflows, torch.bfloat16

    def to(self, dtype):
        self.dtype = dtype

    def decode(self, latents):
        raise AssertionError("nothing is decoded here")

    def encode(self, picture):
        if self.overflows and self.dtype != torch.float32:
            return torch.full((1, 4, 8, 8), float("nan"))
        means = torch.nn.functional.avg_pool2d(picture, 8)
        return torch.cat([means, means[:, :1]], dim=1)


@pytest.mark.parametrize(("height", "width"), [(200, 200), (100, 400)])
def test_a_large_picture_is_encoded_in_tiles_without_a_trace(height, width):
    picture = torch.rand(3, 8 * height, 8 * width)
    latents = VaeCodec(Folding(), 2.0, torch.float32).encode(picture)
    torch.testing.assert_close(latents, 2 * Folding().encode(picture[None])[0])


def test_an_encoder_that_overflows_is_asked_again_in_float32_and_put_back():
    vae = Folding(overflows=True)
    latents = VaeCodec(vae, 1.0, torch.bfloat16).encode(torch.ones(3, 64, 64))
    torch.testing.assert_close(latents, torch.ones(4, 8, 8))
    assert vae.dtype == torch.bfloat16


def test_an_inpainting_unet_is_shown_what_is_around_and_nothing_is_blended(demo, demo_file, tmp_path):
    nine = build_demo(tmp_path / "nine.safetensors", channels=9)
    weights: Any = load_weights(demo_file, inpainting=nine)
    asked = []
    unet = weights.inpainting

    def network(sample, *rest, **more):
        asked.append(sample)
        return unet(sample, *rest, **more)

    mask = np.zeros((24, 16), np.uint8)
    mask[:, 8:] = 255
    source = InitImage(PICTURE, 1.0, mask=mask.tobytes(), overlay="hard")
    pipeline = Pipeline(replace(weights, inpainting=network))
    drawn = pipeline.run(replace(JOB, source=source, steps=3, seeds=(3,)))[0]
    assert (drawn[:, :64] == PIXELS[:, :64]).all()
    assert (drawn[:, 64:] != PIXELS[:, 64:]).any()
    around = asked[0][0, 4:]
    assert torch.equal(around[0] > 0.5, torch.from_numpy(mask > 0))
    assert len({tuple(sample[0, 4:].flatten().tolist()) for sample in asked}) == 1
    room = VaeCodec(weights.vae, weights.architecture.latent_scale, torch.float32)
    picture = to_tensor(PICTURE)
    picture[..., 64:] = 0
    with torch.inference_mode():
        torch.testing.assert_close(around[1:], room.encode(picture))
    assert (drawn != demo.run(replace(JOB, source=source, steps=3, seeds=(3,)))[0]).any()
