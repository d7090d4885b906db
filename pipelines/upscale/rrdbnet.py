"""ESRGAN's network, RRDBNet.

The network: Wang et al., "ESRGAN", 2018, section 3.1 (https://arxiv.org/abs/1809.00219); factors below 4 by folding
squares of pixels into channels: Wang et al., "Real-ESRGAN", 2021, section 3.3 (https://arxiv.org/abs/2107.10833).
Knows nothing of files, tiles and bytes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

SLOPE = 0.2
"""Of every leaky ReLU; neither this nor DAMPING can be told from the weights."""
DAMPING = 0.2
"""What a block's own contribution is multiplied by before it is added to what came in: the paper's beta."""


@dataclass(frozen=True, slots=True)
class RrdbConfig:
    """All that tells one RRDBNet from another.

    Attributes:
        features: the channels between blocks.
        growth: the channels that each layer of a dense block adds.
        blocks: residual blocks of three dense blocks each.
        doublings: how often the height and width are doubled behind the blocks.
        fold: how many pixels wide the squares are that are folded into channels before them.
    """

    features: int
    growth: int
    blocks: int
    doublings: int
    fold: int

    @property
    def scale(self) -> int:
        """How many times higher and wider the picture becomes."""
        return 2**self.doublings // self.fold


class RrdbNet(nn.ModuleDict):
    """The network of a shape; its weights have the names that Real-ESRGAN gave them."""

    def __init__(self, shape: RrdbConfig) -> None:
        features = shape.features
        blocks = (ResidualBlock(features, shape.growth) for _ in range(shape.blocks))
        super().__init__(
            {
                "conv_first": _conv(3 * shape.fold**2, features),
                "body": nn.Sequential(*blocks),
                "conv_body": _conv(features, features),
                **{f"conv_up{number + 1}": _conv(features, features) for number in range(shape.doublings)},
                "conv_hr": _conv(features, features),
                "conv_last": _conv(features, 3),
            }
        )
        self.shape = shape

    def forward(self, picture: Tensor) -> Tensor:
        """(B, 3, h, w) in [0, 1], its sides multiples of the fold, to (B, 3, scale * h, scale * w) in about [0, 1]."""
        x = self["conv_first"](functional.pixel_unshuffle(picture, self.shape.fold))
        x = x + self["conv_body"](self["body"](x))
        for number in range(self.shape.doublings):
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = _bent(self[f"conv_up{number + 1}"](x))
        return self["conv_last"](_bent(self["conv_hr"](x)))


class ResidualBlock(nn.ModuleDict):
    """The paper's residual-in-residual dense block."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__({f"rdb{number}": DenseBlock(features, growth) for number in (1, 2, 3)})

    def forward(self, x: Tensor) -> Tensor:
        """(B, features, h, w), and back the same."""
        through = x
        for block in self.values():
            through = block(through)
        return x + DAMPING * through


class DenseBlock(nn.ModuleDict):
    """Five convolutions, each of which sees what came in and what all before it made."""

    def __init__(self, features: int, growth: int) -> None:
        made = (growth, growth, growth, growth, features)
        super().__init__(
            {f"conv{before + 1}": _conv(features + before * growth, out) for before, out in enumerate(made)}
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, features, h, w), and back the same."""
        seen = [x]
        *growing, last = self.values()
        for conv in growing:
            seen.append(_bent(conv(torch.cat(seen, 1))))
        return x + DAMPING * last(torch.cat(seen, 1))


def _conv(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1)


def _bent(x: Tensor) -> Tensor:
    # in place: at full height and width a second copy would be the largest thing in memory
    return functional.leaky_relu(x, SLOPE, inplace=True)
