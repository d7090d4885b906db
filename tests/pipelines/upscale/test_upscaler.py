import numpy as np
import pytest
import torch
from enlargers import at_random, picture, repeating, shape
from safetensors.torch import save_file

from pipelines.errors import NotFinite
from pipelines.upscale.upscaler import MARGIN, Upscaler, load_upscaler, resize, resize_lanczos, split_tiles

TILE, SEEN_BEYOND = 40, 14


def repeated(pixels, times):
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def apart(one, other):
    """The largest difference of two pictures."""
    assert one.shape == other.shape
    return np.abs(one.astype(int) - other).max()


@pytest.mark.parametrize(("tile", "margin"), [(384, MARGIN), (40, 14), (24, 0)])
def test_tiles_keep_every_cell_once_and_see_the_margin_around_it(tile, margin):
    for length in [*range(1, 4 * tile), 832, 1216, 4864]:
        cut = split_tiles(length, tile, margin)
        assert [one.first for one in cut] == [0, *(one.last for one in cut[:-1])]
        assert (cut[0].start, cut[-1].stop, cut[-1].last) == (0, length, length)
        assert len({one.stop - one.start for one in cut}) == 1
        for one in cut:
            assert 0 <= one.start <= one.first < one.last <= one.stop <= min(length, one.start + tile)
            assert one.first - one.start >= margin or one.start == 0
            assert one.stop - one.last >= margin or one.stop == length


def test_no_tiles_where_one_holds_all():
    assert len(split_tiles(384, 384, MARGIN)) == 1
    assert len(split_tiles(385, 384, MARGIN)) == 2


@pytest.mark.parametrize("gain", [1.0, 3.0])
@pytest.mark.parametrize(("doublings", "fold"), [(2, 1), (2, 2), (2, 4), (1, 1)])
def test_tiles_do_not_show(gain, doublings, fold):
    network = at_random(shape(doublings=doublings, fold=fold), gain)
    pixels = picture(61 * fold - fold // 2, 75 * fold)
    whole = Upscaler(network, 80, SEEN_BEYOND).upscale(pixels)
    tiled = Upscaler(network, TILE, SEEN_BEYOND).upscale(pixels)
    assert whole.shape == (pixels.shape[0] * network.shape.scale, pixels.shape[1] * network.shape.scale, 3)
    assert apart(whole, tiled) <= 1  # rounding; the picture's own borders included
    assert whole.std((0, 1)).min() > 30


def test_tiles_without_a_margin_would_show():
    network = at_random()
    pixels = picture(40, 75)
    assert apart(Upscaler(network, 80, 0).upscale(pixels), Upscaler(network, 40, 0).upscale(pixels)) > 100


def test_pixels_come_back_exactly_where_the_network_repeats_them():
    pixels = np.arange(256, dtype=np.uint8).repeat(3)[: 16 * 16 * 3].reshape(16, 16, 3)
    pixels[..., 1] = pixels[..., 0].T
    pixels = np.tile(pixels, (2, 3, 1))
    assert np.array_equal(Upscaler(repeating(), 20, 4).upscale(pixels), repeated(pixels, 4))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 6), (7, 9)])
def test_sides_that_do_not_fold_are_filled_up_and_cut_again(height, width):
    upscaler = Upscaler(repeating(shape(fold=4)))
    pixels = picture(height, width)
    pixels[...] = pixels[:1, :1]
    # hands on the first row of each square's reds, all of one colour here
    assert np.array_equal(upscaler.upscale(pixels), np.broadcast_to(pixels[..., :1], pixels.shape))


def test_the_last_edge_is_what_fills_up():
    pixels = picture(4, 5)
    odd, even = Upscaler(at_random(shape(fold=2))).upscale, np.pad(pixels, ((0, 0), (0, 1), (0, 0)), "edge")
    assert np.array_equal(odd(pixels), odd(even)[:, :10])


def test_what_the_network_makes_is_rounded_and_kept_within_bytes():
    network = repeating()
    network["conv_last"].bias += torch.tensor([1.0, 0.6 / 255, -1.0])
    made = Upscaler(network).upscale(np.full((3, 3, 3), 100, np.uint8))
    assert np.array_equal(np.unique(made.reshape(-1, 3), axis=0), [[255, 101, 0]])


def test_pictures_may_be_read_only_or_mirrored():
    pixels = picture(6, 8)
    pixels.flags.writeable = False
    upscaler = Upscaler(repeating())
    assert np.array_equal(upscaler.upscale(pixels), repeated(pixels, 4))
    assert np.array_equal(upscaler.upscale(pixels[:, ::-1]), repeated(pixels[:, ::-1], 4))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_picture_that_is_not_finite_is_an_error(value):
    network = repeating()
    network["conv_last"].bias[1] = value
    with pytest.raises(NotFinite, match="upscaler"):
        Upscaler(network).upscale(picture(4, 4))


def test_an_upscaler_comes_from_a_file(tmp_path):
    network = at_random()
    save_file(network.state_dict(), tmp_path / "up.safetensors")
    pixels = picture(20, 30)
    loaded = load_upscaler(tmp_path / "up.safetensors")
    expected = Upscaler(network).upscale(pixels)
    assert loaded.scale == 4
    assert apart(loaded.upscale(pixels), expected) <= 1  # another order of memory sums in another order
    coarse = load_upscaler(tmp_path / "up.safetensors", "cpu", torch.bfloat16)
    assert 1 <= apart(coarse.upscale(pixels), expected) <= 8  # bfloat16 holds 8 bits


def test_lanczos_makes_any_size():
    pixels = picture(10, 20)
    assert resize_lanczos(pixels, 33, 7).shape == (7, 33, 3)
    assert np.array_equal(resize_lanczos(pixels, 20, 10), pixels)
    ramp = np.broadcast_to(np.arange(0, 240, 10, dtype=np.uint8)[:, None, None], (24, 5, 3))
    # the centre of row y is at 4y + 1.5 in the larger picture
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
def test_a_size_is_reached_by_passes_of_the_network_and_then_by_lanczos(passes, sizes):
    pixels, upscaler = picture(4, 6), Upscaler(repeating())
    for width, height in sizes:
        expected = resize_lanczos(repeated(pixels, 4**passes), width, height)
        assert np.array_equal(resize(pixels, width, height, upscaler), expected)
        assert np.array_equal(resize(pixels, width, height, None), resize_lanczos(pixels, width, height))


def test_a_network_that_does_not_enlarge_is_left_out():
    pixels, upscaler = picture(4, 6), Upscaler(at_random(shape(fold=4)))
    assert np.array_equal(resize(pixels, 12, 8, upscaler), resize_lanczos(pixels, 12, 8))
