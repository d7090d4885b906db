"""Runs that start from an init image, on the demo model."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from jobs import change, make_job
from unets import WrappedUNet

from demo.captions import random_scene
from demo.checkpoint import build_demo
from pipelines.image.init_image import InitLatents
from pipelines.image.vae import VaeCodec, to_pixels, to_tensor
from pipelines.job import Guidance, InitImage, Prompts, RgbImage
from pipelines.pipeline import Pipeline
from pipelines.weights.load import load_weights

RNG = np.random.default_rng(3)
PIXELS = random_scene(RNG).draw(128, 192, RNG)
IMAGE = RgbImage(128, 192, PIXELS.tobytes())
JOB = make_job(128, 192, Prompts("1girl"), steps=28, guidance=Guidance(1.0), seeds=(3, 4))


def run_img2img(demo, strength, **changes):
    job = change(JOB, init=InitImage(IMAGE), strength=strength, seeds=(3,), **changes)
    return demo.run(job).images[0]


def mean_change(a, b):
    return float(np.abs(a.astype(int) - b).mean())


def test_to_tensor_and_to_pixels_are_inverse():
    assert (to_pixels(to_tensor(IMAGE)) == PIXELS).all()


def test_a_strength_of_one_hundredth_stays_within_the_vaes_error(demo):
    vae = VaeCodec(demo.weights.vae, demo.weights.architecture.latent_scale, torch.float32)
    with torch.inference_mode():
        decoded = vae.decode(vae.encode(to_tensor(IMAGE)))
    # the lowest sigma, 0.03, moves a latent by as much
    assert mean_change(run_img2img(demo, 0.01), decoded) < 4


def test_more_strength_changes_more(demo):
    changes = [mean_change(run_img2img(demo, strength), PIXELS) for strength in (0.01, 0.5, 0.95)]
    assert changes[0] < changes[1] < changes[2]


def test_extra_noise_has_its_own_seed(demo):
    plain, noisy = run_img2img(demo, 0.3), run_img2img(demo, 0.3, noise=0.3, noise_seed=8)
    assert mean_change(plain, noisy) > 0
    assert mean_change(noisy, run_img2img(demo, 0.3, noise=0.3, noise_seed=9)) > 0
    assert mean_change(plain, run_img2img(demo, 0.3, noise_seed=9)) == 0


def test_extra_noise_is_absolute_and_depends_on_its_seed():
    latents = torch.zeros(4, 32, 32)
    init_latents = InitLatents(latents)
    first, second = init_latents.add_noise(0.2, 5), init_latents.add_noise(0.2, 6)
    assert float(first.std()) == pytest.approx(0.2, rel=0.05)
    assert not torch.equal(first, second)
    assert torch.equal(second, init_latents.add_noise(0.2, 6))
    start = torch.randn(latents.shape, generator=torch.Generator().manual_seed(5))
    assert abs(float((start * first).mean())) < 0.02  # same seed, different draw: standard error 0.003


def test_the_latents_outside_the_mask_come_back(demo):
    mask = np.zeros((24, 16), np.uint8)
    mask[:, 8:] = 255
    init_image = InitImage(IMAGE, mask=mask.tobytes())
    results = demo.generate_latents(change(JOB, init=init_image))
    vae = VaeCodec(demo.weights.vae, demo.weights.architecture.latent_scale, torch.float32)
    with torch.inference_mode():
        original = vae.encode(to_tensor(IMAGE))
    for latents in results:
        assert torch.equal(latents[..., :8], original[..., :8])
        assert float((latents[..., 8:] - original[..., 8:]).abs().mean()) > 0.1


class AveragingVae:
    """A VAE whose latents are means of 8x8 squares, so that tiling cannot change them."""

    def __init__(self, overflows=False):
        self.overflows, self.dtype = overflows, torch.bfloat16

    def to(self, dtype):
        self.dtype = dtype

    def decode(self, latents):
        raise AssertionError("decode is not used")

    def encode(self, image):
        if self.overflows and self.dtype != torch.float32:
            return torch.full((1, 4, 8, 8), float("nan"))
        means = torch.nn.functional.avg_pool2d(image, 8)
        return torch.cat([means, means[:, :1]], dim=1)


@pytest.mark.parametrize(("height", "width"), [(200, 200), (100, 400)])
def test_a_large_image_is_encoded_in_tiles_without_seams(height, width):
    image = torch.rand(3, 8 * height, 8 * width)
    vae: Any = AveragingVae()
    latents = VaeCodec(vae, 2.0, torch.float32).encode(image)
    torch.testing.assert_close(latents, 2 * vae.encode(image[None])[0])


def test_an_encoder_that_overflows_runs_again_in_float32_and_is_converted_back():
    vae: Any = AveragingVae(overflows=True)
    latents = VaeCodec(vae, 1.0, torch.bfloat16).encode(torch.ones(3, 64, 64))
    torch.testing.assert_close(latents, torch.ones(4, 8, 8))
    assert vae.dtype == torch.bfloat16


def test_an_inpainting_unet_gets_extra_channels_and_no_blend(demo, demo_file, tmp_path):
    inpainting = build_demo(tmp_path / "nine.safetensors", channels=9)
    weights: Any = load_weights(demo_file, inpainting=inpainting)
    samples = []

    def record(unet, sample, *rest):
        samples.append(sample)
        return unet(sample, *rest)

    mask = np.zeros((24, 16), np.uint8)
    mask[:, 8:] = 255
    init_image = InitImage(IMAGE, mask=mask.tobytes(), overlay="hard")
    pipeline = Pipeline(replace(weights, inpainting=WrappedUNet(weights.inpainting, record)))
    result = pipeline.run(change(JOB, init=init_image, steps=3, seeds=(3,))).images[0]
    assert (result[:, :64] == PIXELS[:, :64]).all()
    assert (result[:, 64:] != PIXELS[:, 64:]).any()
    extra = samples[0][0, 4:]
    assert torch.equal(extra[0] > 0.5, torch.from_numpy(mask > 0))
    assert len({tuple(sample[0, 4:].flatten().tolist()) for sample in samples}) == 1
    vae = VaeCodec(weights.vae, weights.architecture.latent_scale, torch.float32)
    erased = to_tensor(IMAGE)
    erased[..., 64:] = 0
    with torch.inference_mode():
        torch.testing.assert_close(extra[1:], vae.encode(erased))
    assert (result != demo.run(change(JOB, init=init_image, steps=3, seeds=(3,))).images[0]).any()
