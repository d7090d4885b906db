"""The network compared with the papers' formulas, recomputed here from its weights."""

import pytest
import torch
from torch.nn.functional import conv2d
from upscaler_files import make_identity, random_network, repeating_network, small_config


def recompute(weights, x, *, blocks, doublings, fold):
    """ESRGAN's figure 4 and equation, layer by layer, from a state dict."""

    def conv(name, x):
        return conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    def leaky_relu(x):
        return torch.where(x > 0, x, 0.2 * x)

    def dense(name, x0):
        x1 = leaky_relu(conv(f"{name}.conv1", x0))
        x2 = leaky_relu(conv(f"{name}.conv2", torch.cat((x0, x1), 1)))
        x3 = leaky_relu(conv(f"{name}.conv3", torch.cat((x0, x1, x2), 1)))
        x4 = leaky_relu(conv(f"{name}.conv4", torch.cat((x0, x1, x2, x3), 1)))
        return x0 + 0.2 * conv(f"{name}.conv5", torch.cat((x0, x1, x2, x3, x4), 1))

    folded = [
        x[:, color, row::fold, column::fold]
        for color in range(3)
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
        x = leaky_relu(conv(f"conv_up{number}", x.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    return conv("conv_last", leaky_relu(conv("conv_hr", x)))


@pytest.mark.parametrize(
    ("doublings", "fold", "scale"),
    [(2, 1, 4), (2, 2, 2), (2, 4, 1), (1, 1, 2), (0, 1, 1), (3, 1, 8), (3, 2, 4)],
)
def test_the_network_matches_the_papers(doublings, fold, scale):
    config = small_config(doublings=doublings, fold=fold)
    network = random_network(config)
    image = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(1))
    out = network(image)
    expected = recompute(network.state_dict(), image, blocks=2, doublings=doublings, fold=fold)
    assert config.scale == scale
    assert out.shape == (2, 3, 12 * scale, 20 * scale)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)  # the order of summation differs


def test_blocks_without_weights_leave_the_pixels_repeated():
    image = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(2))
    expected = image.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(repeating_network()(image), expected)


def test_each_block_without_weights_adds_a_fifth_of_its_input():
    network = repeating_network(small_config(blocks=3))
    make_identity(network["conv_body"])
    out = network(torch.full((1, 3, 4, 4), 0.1))
    torch.testing.assert_close(out, torch.full((1, 3, 16, 16), 0.1 * (1 + 1.2**3)))


def test_folded_pixels_become_channels_row_by_row():
    network = repeating_network(
        small_config(fold=2)
    )  # returns the first three of twelve channels: the red of three pixels
    image = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(3))
    red = image[:, 0]
    corners = torch.stack((red[:, ::2, ::2], red[:, ::2, 1::2], red[:, 1::2, ::2]), 1)
    assert torch.equal(network(image), corners.repeat_interleave(4, 2).repeat_interleave(4, 3))


def test_the_input_is_not_modified():
    image = torch.rand(1, 3, 8, 8)
    before = image.clone()
    random_network()(image)
    assert torch.equal(image, before)
