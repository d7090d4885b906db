import numpy as np
import pytest
import torch

from pipelines.image.preview import correlate, fit_preview
from pipelines.image.vae import to_bytes, to_pixels

CPU = torch.device("cpu")


def decode_linear(latents):
    return 0.3 * latents[:3] + 0.1 * latents[3:] + 0.05


def decode_curved(latents):
    return decode_linear(latents) + 0.1 * latents[:3] * latents[1:]


def repeat_pixels(image):
    """An image in which each pixel of a smaller one is an 8x8 square, as a VAE would return it."""
    return to_pixels(image.repeat_interleave(8, -1).repeat_interleave(8, -2))


@pytest.mark.parametrize(("decode", "tolerance"), [(decode_linear, 2), (decode_curved, 12)])
def test_previews_are_fitted_to_the_vae(decode, tolerance):
    preview = fit_preview(lambda latents: repeat_pixels(decode(latents)), CPU)
    latents = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(1)) * 0.7
    image = preview(latents)
    assert image.dtype == torch.uint8
    assert image.shape == (6, 5, 3)
    difference = image.numpy().astype(int) - to_bytes(decode(latents)).numpy()
    assert np.abs(difference).max() <= tolerance


def test_half_precision_latents_have_previews_too():
    preview = fit_preview(lambda latents: repeat_pixels(decode_linear(latents)), CPU)
    assert preview(torch.zeros(4, 2, 2, dtype=torch.bfloat16)).shape == (2, 2, 3)


def test_a_decoder_is_compared_with_the_vae():
    image = torch.randint(0, 256, (48, 48, 3), generator=torch.Generator().manual_seed(1))
    large = image.repeat_interleave(8, 0).repeat_interleave(8, 1).to(torch.uint8)
    assert correlate(image, large) > 0.999
    assert correlate(255 - image, large) < -0.999
    assert abs(correlate(image.flip(0), large)) < 0.1
