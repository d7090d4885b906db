import numpy as np
import pytest
from PIL import Image, ImageDraw

from server.director.lines import draw_lineart, draw_sketch

SIZE = 256


def draw(function, background="white", size=(SIZE, SIZE)):
    """An image that a function of PIL's draws on."""
    image = Image.new("RGB", size, background)
    function(ImageDraw.Draw(image))
    return np.asarray(image)


def disc(color):
    return lambda canvas: canvas.ellipse((64, 64, 192, 192), fill=color)


@pytest.mark.parametrize("color", ["white", "black", "navy"])
def test_a_plain_image_is_white_paper(color):
    assert (draw_lineart(draw(lambda _: None, color)) == 255).all()


@pytest.mark.parametrize(
    ("background", "color"), [("white", "black"), ("black", "white"), ("blue", "red"), ("white", "yellow")]
)
def test_an_area_gets_an_outline_and_is_not_filled(background, color):
    lines = draw_lineart(draw(disc(color), background))[..., 0]
    assert lines[128, 128] == lines[20, 20] == 255
    for crossing in (lines[128, 56:72], lines[128, 184:200], lines[56:72, 128], lines[184:200, 128]):
        assert crossing.min() < 60
    assert (lines < 250).mean() < 0.06


def test_a_line_stays_one_line_of_about_its_width():
    image = draw(lambda canvas: canvas.line((30, 40, 220, 200), fill="black", width=2))
    dark = draw_lineart(image)[..., 0] < 128
    assert dark[:, 60:190].sum(0).max() <= 6
    assert dark[:, 60:190].any(0).all()


def test_specks_and_noise_are_left_out():
    noise = np.random.default_rng(0).normal(0, 3, (SIZE, SIZE, 3))
    image = draw(lambda canvas: canvas.point([(40, 40), (41, 40), (200, 90)], "black"))
    assert (draw_lineart((image + noise).clip(0, 255).astype(np.uint8)) == 255).all()


def test_a_sketch_is_hatched_where_the_image_is_dark():
    sketch = draw_sketch(draw(disc("black")))[..., 0]
    inside, outside = sketch[96:160, 96:160], sketch[:40, :40]
    assert outside.mean() > 250
    assert inside.mean() < 190
    assert inside.std() > 15


def test_a_sketch_is_reproducible():
    image = draw(disc("gray"))
    assert (draw_sketch(image, 4) == draw_sketch(image, 4)).all()
    assert (draw_sketch(image, 4) != draw_sketch(image, 5)).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 7)])
def test_images_of_any_shape_are_drawn(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    for function in (draw_lineart, draw_sketch):
        assert function(image).shape == image.shape
