"""How a control map is fitted to what a row sees."""

import numpy as np
import torch
from PIL import Image

from pipelines.adapters.control_map import ControlMap
from pipelines.job import RgbImage

BLACK, RED, GREEN, BLUE = (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)


class Encoder:
    """A network whose hints are the pixels."""

    def __init__(self):
        self.sizes = []

    def encode_map(self, pixels):
        self.sizes.append(tuple(pixels.shape))
        return pixels


def read(image, size, *latents):
    """Return the network, and the pixels that it is given for latents of each (height, width)."""
    encoder = Encoder()
    rgb = RgbImage(image.width, image.height, image.tobytes())
    control_map = ControlMap(encoder, rgb, size, torch.device("cpu"), torch.float32)  # pyright: ignore[reportArgumentType]
    return encoder, [control_map.encode(*latent) for latent in latents]


def paint(width, height, colors):
    """An image of vertical stripes of equal width."""
    stripe = width // len(colors)
    row = np.repeat(np.array(colors, np.uint8), stripe, axis=0)
    return Image.fromarray(np.broadcast_to(row, (height, *row.shape)).copy())


def test_a_map_of_the_images_size_is_taken_as_it_is():
    image = Image.fromarray(np.arange(64 * 96 * 3, dtype=np.uint32).astype(np.uint8).reshape(96, 64, 3))
    _, (pixels,) = read(image, (64, 96), (12, 8))
    assert torch.equal(pixels, torch.tensor(np.array(image)).permute(2, 0, 1) / 255)


def test_a_map_of_another_shape_covers_the_image_and_loses_what_is_outside():
    _, (wide,) = read(paint(256, 64, (RED, GREEN, GREEN, BLUE)), (64, 32), (4, 8))
    green = torch.tensor(GREEN)[:, None, None] / 255
    torch.testing.assert_close(
        wide, green.expand(3, 32, 64), atol=0.06, rtol=0
    )  # Lanczos looks a bit further
    _, (tall,) = read(
        paint(256, 64, (RED, GREEN, GREEN, BLUE)).transpose(Image.Transpose.ROTATE_90), (32, 64), (8, 4)
    )
    torch.testing.assert_close(tall, green.expand(3, 64, 32), atol=0.06, rtol=0)


def test_low_resolution_copies_see_the_whole_fitted_map():
    _, (full, low) = read(paint(256, 64, (RED, GREEN, GREEN, BLUE)), (256, 64), (8, 32), (4, 16))
    assert low.shape == (3, 32, 128)
    for column, color in ((4, RED), (64, GREEN), (124, BLUE)):
        expected = torch.tensor(color) / 255
        assert torch.allclose(low[:, 16, column], expected, atol=0.02)
        assert torch.allclose(full[:, 32, 2 * column], expected, atol=0.02)


def test_a_map_is_encoded_once_for_each_size():
    encoder, hints = read(paint(64, 64, (BLACK, RED)), (64, 64), (8, 8), (4, 4), (8, 8), (4, 4))
    assert encoder.sizes == [(1, 3, 64, 64), (1, 3, 32, 32)]
    assert hints[0] is hints[2]
