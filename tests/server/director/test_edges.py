from hashlib import sha256

import numpy as np
import pytest

from server.director.edges import draw_canny, draw_scribble, draw_soft_edges


def square(low=0, high=255):
    """A square of 40 by 40 pixels on a plain background."""
    image = np.full((80, 80, 3), low, np.uint8)
    image[20:60, 20:60] = high
    return image


def test_canny_draws_a_closed_line_of_one_pixel():
    edges = draw_canny(square())[..., 0]
    assert set(np.unique(edges)) == {0, 255}
    for line in (edges[40], edges[:, 40]):
        assert (line > 0).sum() == 2
    assert edges[30:50, 30:50].max() == 0


@pytest.mark.parametrize("color", [(255, 0, 0), (0, 255, 0), (0, 0, 255)])
def test_canny_sees_each_channel(color):
    assert draw_canny(square() // 255 * np.array(color, np.uint8)).any()


def test_canny_keeps_weak_edges_only_if_they_reach_a_strong_one():
    image = square(0, 40)  # derivatives of 160, and of 240 at the corners
    assert draw_canny(image, 100, 230).any()
    assert not draw_canny(image, 100, 250).any()
    image[20:60, 40:60] = 200  # a strong part, connected to the weak one
    edges = draw_canny(image, 100, 250)[..., 0]
    assert edges[25:55, 18:22].any()
    assert not draw_canny(image, 245, 250)[25:55, 18:22].any()


def test_thresholds_in_the_wrong_order_are_exchanged():
    assert (draw_canny(square(0, 40), 170, 100) == draw_canny(square(0, 40), 100, 170)).all()


@pytest.mark.parametrize("function", [draw_canny, draw_soft_edges, draw_scribble])
def test_a_plain_image_has_no_edges(function):
    assert not function(np.full((64, 48, 3), 90, np.uint8)).any()


def test_soft_edges_are_brightest_at_the_border_and_fall_off():
    edges = draw_soft_edges(square())[40, :, 0].astype(int)
    assert edges[19:21].min() > 200
    assert edges[19] > edges[18] > edges[17] > edges[12] == 0
    assert edges[40] == 0


def test_a_scribble_is_a_thick_line_without_shades():
    scribble = draw_scribble(square())[..., 0]
    assert set(np.unique(scribble)) == {0, 255}
    assert 3 <= (scribble[40, :40] > 0).sum() <= 9


@pytest.mark.parametrize(
    ("low", "high", "digest"), [(100, 200, "e594d409ee186284"), (50, 90, "c3ab6936e0f9f48e")]
)
def test_canny_is_that_of_opencv(low, high, digest):
    """The digests are of OpenCV 5's edges of the same image."""
    image = np.random.default_rng(5).integers(0, 256, (20, 25, 3), np.uint8).repeat(6, 0).repeat(6, 1)
    image = ((image.astype(int) + np.roll(image, 3, 1) + np.roll(image, 2, 0)) // 3).astype(np.uint8)
    edges = draw_canny(image, low, high)[..., 0] > 0
    assert sha256(np.packbits(edges).tobytes()).hexdigest()[:16] == digest
