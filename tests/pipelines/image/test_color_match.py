"""Giving a drawn picture its source's colours back."""

import numpy as np
import pytest

from pipelines.image.color_match import _to_rgb, match_colors, to_lab
from pipelines.job import InitImage, RgbImage

HEIGHT, WIDTH = 64, 96
RNG = np.random.default_rng(2)
OWN = RNG.integers(60, 190, (HEIGHT, WIDTH, 3), dtype=np.uint8)
PLACES = np.zeros((HEIGHT // 8, WIDTH // 8), np.uint8)
PLACES[:, 6:] = 255


def source(mask=None, color_correct=True):
    return InitImage(RgbImage(WIDTH, HEIGHT, OWN.tobytes()), mask=mask, color_correct=color_correct)


def test_cielab_is_that_of_the_tables():
    """Bruce Lindbloom's calculator, sRGB under D65."""
    known = {
        (255, 0, 0): (53.24, 80.09, 67.20),
        (0, 255, 0): (87.73, -86.18, 83.18),
        (0, 0, 255): (32.30, 79.19, -107.86),
        (128, 128, 128): (53.59, 0.0, 0.0),
        (255, 255, 255): (100.0, 0.0, 0.0),
    }
    np.testing.assert_allclose(to_lab(np.array([list(known)], np.uint8))[0], list(known.values()), atol=0.02)
    every = np.stack(np.meshgrid(*[np.arange(0, 256, 17)] * 3), -1).reshape(1, -1, 3).astype(np.uint8)
    assert (_to_rgb(to_lab(every)) == every).all()


@pytest.mark.parametrize("mask", [None, PLACES.tobytes()], ids=["img2img", "infill"])
def test_a_tint_is_taken_back(mask):
    tinted = _to_rgb(to_lab(OWN) * np.array([0.7, 0.6, 0.6]) + np.array([20, 6, -9]))
    assert np.abs(tinted.astype(int) - OWN).mean() > 10
    # a byte's rounding, widened by the spread that is given back
    np.testing.assert_allclose(match_colors(tinted, source(mask)), OWN, atol=4)


def test_what_was_drawn_anew_is_corrected_but_not_measured():
    drawn = _to_rgb(to_lab(OWN) + np.array([12, 0, 0], np.float32))
    drawn[:, 48:] = (128, 128, 128)
    corrected = match_colors(drawn, source(PLACES.tobytes()))
    np.testing.assert_allclose(corrected[:, :48], OWN[:, :48], atol=3)
    assert (corrected[:, 48:] < 110).all()  # as much darker as what was kept has become


def test_something_colourful_that_is_drawn_into_a_plain_area_stays_so():
    own = np.full((HEIGHT, WIDTH, 3), 240, np.uint8)
    drawn = (own + RNG.integers(-3, 4, own.shape)).astype(np.uint8)  # about what a VAE adds
    drawn[:, 48:] = (220, 20, 40)
    plain = InitImage(RgbImage(WIDTH, HEIGHT, own.tobytes()), mask=PLACES.tobytes(), color_correct=True)
    np.testing.assert_allclose(match_colors(drawn, plain)[:, 48:], drawn[:, 48:], atol=2)


def test_a_grey_drawing_stays_grey():
    grey = np.repeat(RNG.integers(0, 256, (HEIGHT, WIDTH, 1), np.int64), 3, axis=2)
    noisy = (grey + RNG.integers(-1, 2, grey.shape)).clip(0, 255).astype(np.uint8)
    spread = np.asarray(match_colors(noisy, source())).astype(int).std(axis=2).mean()
    assert spread < 20  # its own 0.8, twice as wide, around the source's mean tint


@pytest.mark.parametrize(
    "given",
    [source(color_correct=False), source(bytes([255]) * PLACES.size)],
    ids=["unasked", "nothing kept"],
)
def test_nothing_changes_unasked_or_where_nothing_was_kept(given):
    other = 255 - OWN
    assert match_colors(other, given) is other
