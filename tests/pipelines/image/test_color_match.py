"""Matching a generated image's colors to its init image."""

import numpy as np
import pytest

from pipelines.image.color_match import match_colors, to_lab, to_rgb
from pipelines.job import InitImage, RgbImage

HEIGHT, WIDTH = 64, 96
RNG = np.random.default_rng(2)
ORIGINAL = RNG.integers(60, 190, (HEIGHT, WIDTH, 3), dtype=np.uint8)
MASK = np.zeros((HEIGHT // 8, WIDTH // 8), np.uint8)
MASK[:, 6:] = 255


def make_init_image(mask=None, color_correct=True):
    return InitImage(RgbImage(WIDTH, HEIGHT, ORIGINAL.tobytes()), mask=mask, color_correct=color_correct)


def test_cielab_matches_published_values():
    """Bruce Lindbloom's calculator, sRGB under D65."""
    expected = {
        (255, 0, 0): (53.24, 80.09, 67.20),
        (0, 255, 0): (87.73, -86.18, 83.18),
        (0, 0, 255): (32.30, 79.19, -107.86),
        (128, 128, 128): (53.59, 0.0, 0.0),
        (255, 255, 255): (100.0, 0.0, 0.0),
    }
    lab = to_lab(np.array([list(expected)], np.uint8))[0]
    np.testing.assert_allclose(lab, list(expected.values()), atol=0.02)
    grid = np.stack(np.meshgrid(*[np.arange(0, 256, 17)] * 3), -1).reshape(1, -1, 3).astype(np.uint8)
    assert (to_rgb(to_lab(grid)) == grid).all()


@pytest.mark.parametrize("mask", [None, MASK.tobytes()], ids=["img2img", "infill"])
def test_a_tint_is_removed(mask):
    tinted = to_rgb(to_lab(ORIGINAL) * np.array([0.7, 0.6, 0.6]) + np.array([20, 6, -9]))
    assert np.abs(tinted.astype(int) - ORIGINAL).mean() > 10
    # rounding to bytes, amplified by the gain that restores the deviation
    np.testing.assert_allclose(match_colors(tinted, make_init_image(mask)), ORIGINAL, atol=4)


def test_the_masked_part_is_corrected_but_not_measured():
    pixels = to_rgb(to_lab(ORIGINAL) + np.array([12, 0, 0], np.float32))
    pixels[:, 48:] = (128, 128, 128)
    corrected = match_colors(pixels, make_init_image(MASK.tobytes()))
    np.testing.assert_allclose(corrected[:, :48], ORIGINAL[:, :48], atol=3)
    assert (corrected[:, 48:] < 110).all()  # darker by as much as the kept part


def test_a_colorful_object_in_a_flat_area_stays_colorful():
    flat = np.full((HEIGHT, WIDTH, 3), 240, np.uint8)
    pixels = (flat + RNG.integers(-3, 4, flat.shape)).astype(np.uint8)  # about as much as a VAE adds
    pixels[:, 48:] = (220, 20, 40)
    flat_init = InitImage(RgbImage(WIDTH, HEIGHT, flat.tobytes()), mask=MASK.tobytes(), color_correct=True)
    np.testing.assert_allclose(match_colors(pixels, flat_init)[:, 48:], pixels[:, 48:], atol=2)


def test_a_gray_image_stays_gray():
    gray = np.repeat(RNG.integers(0, 256, (HEIGHT, WIDTH, 1), np.int64), 3, axis=2)
    noisy = (gray + RNG.integers(-1, 2, gray.shape)).clip(0, 255).astype(np.uint8)
    deviation = np.asarray(match_colors(noisy, make_init_image())).astype(int).std(axis=2).mean()
    assert deviation < 20  # its own 0.8, doubled, around the init image's mean tint


@pytest.mark.parametrize(
    "unmatched",
    [make_init_image(color_correct=False), make_init_image(bytes([255]) * MASK.size)],
    ids=["not requested", "nothing kept"],
)
def test_nothing_changes_if_not_requested_or_nothing_is_kept(unmatched):
    pixels = 255 - ORIGINAL
    assert match_colors(pixels, unmatched) is pixels
