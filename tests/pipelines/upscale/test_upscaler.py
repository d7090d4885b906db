import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from upscaler_files import random_image, random_network, repeating_network, small_config

from pipelines.errors import NotFinite
from pipelines.upscale.upscaler import MARGIN, Upscaler, load_upscaler, resize, resize_lanczos, split_tiles

SMALL_TILE, SMALL_MARGIN = 40, 14


def repeat_pixels(pixels, times):
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def largest_difference(one, other):
    """The largest difference between two images, in 255ths."""
    assert one.shape == other.shape
    return np.abs(one.astype(int) - other).max()


@pytest.mark.parametrize(("tile", "margin"), [(384, MARGIN), (40, 14), (24, 0)])
def test_tiles_keep_every_cell_once_with_its_margin(tile, margin):
    for length in [*range(1, 4 * tile), 832, 1216, 4864]:
        spans = split_tiles(length, tile, margin)
        assert [one.first for one in spans] == [0, *(one.last for one in spans[:-1])]
        assert (spans[0].start, spans[-1].stop, spans[-1].last) == (0, length, length)
        assert len({one.stop - one.start for one in spans}) == 1
        for one in spans:
            assert 0 <= one.start <= one.first < one.last <= one.stop <= min(length, one.start + tile)
            assert one.first - one.start >= margin or one.start == 0
            assert one.stop - one.last >= margin or one.stop == length


def test_a_side_that_fits_one_tile_is_not_split():
    assert len(split_tiles(384, 384, MARGIN)) == 1
    assert len(split_tiles(385, 384, MARGIN)) == 2


@pytest.mark.parametrize("gain", [1.0, 3.0])
@pytest.mark.parametrize(("doublings", "fold"), [(2, 1), (2, 2), (2, 4), (1, 1)])
def test_tiles_leave_no_seam(gain, doublings, fold):
    network = random_network(small_config(doublings=doublings, fold=fold), gain)
    pixels = random_image(61 * fold - fold // 2, 75 * fold)
    untiled = Upscaler(network, 80, SMALL_MARGIN).upscale(pixels)
    tiled = Upscaler(network, SMALL_TILE, SMALL_MARGIN).upscale(pixels)
    assert untiled.shape == (
        pixels.shape[0] * network.config.scale,
        pixels.shape[1] * network.config.scale,
        3,
    )
    assert largest_difference(untiled, tiled) <= 1  # rounding; the image's borders included
    assert untiled.std((0, 1)).min() > 30


def test_tiles_without_a_margin_leave_seams():
    network = random_network()
    pixels = random_image(40, 75)
    assert (
        largest_difference(Upscaler(network, 80, 0).upscale(pixels), Upscaler(network, 40, 0).upscale(pixels))
        > 100
    )


def test_a_network_that_repeats_pixels_returns_them_exactly():
    pixels = np.arange(256, dtype=np.uint8).repeat(3)[: 16 * 16 * 3].reshape(16, 16, 3)
    pixels[..., 1] = pixels[..., 0].T
    pixels = np.tile(pixels, (2, 3, 1))
    assert np.array_equal(Upscaler(repeating_network(), 20, 4).upscale(pixels), repeat_pixels(pixels, 4))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 6), (7, 9)])
def test_sides_that_are_no_multiple_of_the_fold_are_padded_and_cropped(height, width):
    upscaler = Upscaler(repeating_network(small_config(fold=4)))
    pixels = random_image(height, width)
    pixels[...] = pixels[:1, :1]
    # returns the reds of each square's first row; all pixels have one color here
    assert np.array_equal(upscaler.upscale(pixels), np.broadcast_to(pixels[..., :1], pixels.shape))


def test_padding_repeats_the_last_edge():
    pixels = random_image(4, 5)
    padded = np.pad(pixels, ((0, 0), (0, 1), (0, 0)), "edge")
    upscaler = Upscaler(random_network(small_config(fold=2)))
    assert np.array_equal(upscaler.upscale(pixels), upscaler.upscale(padded)[:, :10])


def test_the_output_is_rounded_and_clipped_to_bytes():
    network = repeating_network()
    network["conv_last"].bias += torch.tensor([1.0, 0.6 / 255, -1.0])
    result = Upscaler(network).upscale(np.full((3, 3, 3), 100, np.uint8))
    assert np.array_equal(np.unique(result.reshape(-1, 3), axis=0), [[255, 101, 0]])


def test_images_may_be_read_only_or_have_negative_strides():
    pixels = random_image(6, 8)
    pixels.flags.writeable = False
    upscaler = Upscaler(repeating_network())
    assert np.array_equal(upscaler.upscale(pixels), repeat_pixels(pixels, 4))
    assert np.array_equal(upscaler.upscale(pixels[:, ::-1]), repeat_pixels(pixels[:, ::-1], 4))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_output_that_is_not_finite_is_an_error(value):
    network = repeating_network()
    network["conv_last"].bias[1] = value
    with pytest.raises(NotFinite, match="upscaler"):
        Upscaler(network).upscale(random_image(4, 4))


def test_an_upscaler_is_loaded_from_a_file(tmp_path):
    network = random_network()
    save_file(network.state_dict(), tmp_path / "up.safetensors")
    pixels = random_image(20, 30)
    loaded = load_upscaler(tmp_path / "up.safetensors")
    expected = Upscaler(network).upscale(pixels)
    assert loaded.scale == 4
    assert (
        largest_difference(loaded.upscale(pixels), expected) <= 1
    )  # another memory format sums in another order
    coarse = load_upscaler(tmp_path / "up.safetensors", "cpu", torch.bfloat16)
    assert 1 <= largest_difference(coarse.upscale(pixels), expected) <= 8  # bfloat16 holds 8 bits


def test_lanczos_resizes_to_any_size():
    pixels = random_image(10, 20)
    assert resize_lanczos(pixels, 33, 7).shape == (7, 33, 3)
    assert np.array_equal(resize_lanczos(pixels, 20, 10), pixels)
    ramp = np.broadcast_to(np.arange(0, 240, 10, dtype=np.uint8)[:, None, None], (24, 5, 3))
    # the center of row y is at 4y + 1.5 in the larger image
    expected = (np.arange(96) - 1.5) / 4 * 10
    assert np.abs(resize_lanczos(ramp, 5, 96)[12:-12, 2, 0] - expected[12:-12]).max() <= 1


@pytest.mark.parametrize(
    ("passes", "sizes"),
    [
        (0, [(6, 4), (3, 3)]),
        (1, [(24, 16), (18, 12), (7, 4), (6, 5)]),
        (2, [(25, 16), (24, 17), (96, 64), (200, 130)]),
    ],
)
def test_resize_runs_the_network_and_then_lanczos(passes, sizes):
    pixels, upscaler = random_image(4, 6), Upscaler(repeating_network())
    for width, height in sizes:
        expected = resize_lanczos(repeat_pixels(pixels, 4**passes), width, height)
        assert np.array_equal(resize(pixels, width, height, upscaler), expected)
        assert np.array_equal(resize(pixels, width, height, None), resize_lanczos(pixels, width, height))


def test_a_network_of_scale_1_is_not_used():
    pixels, upscaler = random_image(4, 6), Upscaler(random_network(small_config(fold=4)))
    assert np.array_equal(resize(pixels, 12, 8, upscaler), resize_lanczos(pixels, 12, 8))
