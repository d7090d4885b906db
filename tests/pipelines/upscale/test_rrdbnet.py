"""The network against the papers' formulas, computed here once more from the weights alone."""

import pytest
import torch
from enlargers import at_random, pass_on, repeating, shape
from torch.nn.functional import conv2d


def recomputed(weights, x, *, blocks, doublings, fold):
    """ESRGAN's figure 4 and equation, layer by layer, from a state dict."""

    def conv(name, x):
        return conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    def bent(x):
        return torch.where(x > 0, x, 0.2 * x)

    def dense(name, x0):
        x1 = bent(conv(f"{name}.conv1", x0))
        x2 = bent(conv(f"{name}.conv2", torch.cat((x0, x1), 1)))
        x3 = bent(conv(f"{name}.conv3", torch.cat((x0, x1, x2), 1)))
        x4 = bent(conv(f"{name}.conv4", torch.cat((x0, x1, x2, x3), 1)))
        return x0 + 0.2 * conv(f"{name}.conv5", torch.cat((x0, x1, x2, x3, x4), 1))

    folded = [
        x[:, colour, row::fold, column::fold]
        for colour in range(3)
        for row in range(fold)
        for column in range(fold)
    ]
    first = trunk = conv("conv_first", torch.stack(folded, 1))
    for block in range(blocks):
        inner = trunk
        for number in (1, 2, 3):
            inner = dense(f"body.{block}.rdb{number}", inner)
        trunk = trunk + 0.2 * inner
    x = first + conv("conv_body", trunk)
    for number in range(1, doublings + 1):
        x = bent(conv(f"conv_up{number}", x.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    return conv("conv_last", bent(conv("conv_hr", x)))


@pytest.mark.parametrize(
    ("doublings", "fold", "scale"),
    [(2, 1, 4), (2, 2, 2), (2, 4, 1), (1, 1, 2), (0, 1, 1), (3, 1, 8), (3, 2, 4)],
)
def test_the_network_is_the_papers(doublings, fold, scale):
    made = shape(doublings=doublings, fold=fold)
    network = at_random(made)
    given = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(1))
    out = network(given)
    expected = recomputed(network.state_dict(), given, blocks=2, doublings=doublings, fold=fold)
    assert made.scale == scale
    assert out.shape == (2, 3, 12 * scale, 20 * scale)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)  # the order of summation differs


def test_idle_blocks_leave_the_pixels_repeated():
    given = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(2))
    expected = given.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(repeating()(given), expected)


def test_each_idle_block_adds_a_fifth_of_what_comes_in():
    network = repeating(shape(blocks=3))
    pass_on(network["conv_body"])
    out = network(torch.full((1, 3, 4, 4), 0.1))
    torch.testing.assert_close(out, torch.full((1, 3, 16, 16), 0.1 * (1 + 1.2**3)))


def test_folded_pixels_come_in_as_channels_row_by_row():
    network = repeating(shape(fold=2))  # hands on the first three of twelve channels: the red of three pixels
    given = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(3))
    red = given[:, 0]
    corners = torch.stack((red[:, ::2, ::2], red[:, ::2, 1::2], red[:, 1::2, ::2]), 1)
    assert torch.equal(network(given), corners.repeat_interleave(4, 2).repeat_interleave(4, 3))


def test_the_input_is_left_as_it_was():
    given = torch.rand(1, 3, 8, 8)
    before = given.clone()
    at_random()(given)
    assert torch.equal(given, before)
