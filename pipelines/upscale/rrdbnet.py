"""RRDBNet, the network of ESRGAN and Real-ESRGAN. Files, tiles and image bytes are handled elsewhere.

The network: Wang et al., "ESRGAN", 2018, section 3.1 (https://arxiv.org/abs/1809.00219). Scales below 4 by pixel
unshuffle: Wang et al., "Real-ESRGAN", 2021, section 3.3 (https://arxiv.org/abs/2107.10833).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

SLOPE = 0.2
"""Negative slope of every leaky ReLU. Like RESIDUAL_SCALE it cannot be detected from the weights."""
RESIDUAL_SCALE = 0.2
"""Factor on a block's output before it is added to the block's input: the paper's beta."""


@dataclass(frozen=True, slots=True)
class RrdbConfig:
    """The sizes that distinguish one RRDBNet from another."""

    features: int  # channels between blocks
    growth: int  # channels that each layer of a dense block adds
    blocks: int  # residual blocks, each of three dense blocks
    doublings: int  # 2x upsampling layers after the blocks
    fold: int  # side in pixels of the squares folded into channels before the blocks (pixel unshuffle)

    @property
    def scale(self) -> int:
        """Output height and width over the input's."""
        return 2**self.doublings // self.fold


class RrdbNet(nn.ModuleDict):
    """The network; its weights are named as in Real-ESRGAN."""

    def __init__(self, config: RrdbConfig) -> None:
        features = config.features
        blocks = (ResidualBlock(features, config.growth) for _ in range(config.blocks))
        doublings = range(1, config.doublings + 1)
        super().__init__(
            {
                "conv_first": _make_conv(3 * config.fold**2, features),
                "body": nn.Sequential(*blocks),
                "conv_body": _make_conv(features, features),
                **{f"conv_up{number}": _make_conv(features, features) for number in doublings},
                "conv_hr": _make_conv(features, features),
                "conv_last": _make_conv(features, 3),
            }
        )
        self.config = config

    def forward(self, image: Tensor) -> Tensor:
        """Upscale (B, 3, h, w) in [0, 1], h and w multiples of the fold, to (B, 3, scale * h, scale * w).

        The output is only approximately within [0, 1].
        """
        x = self["conv_first"](functional.pixel_unshuffle(image, self.config.fold))
        x = x + self["conv_body"](self["body"](x))
        for number in range(self.config.doublings):
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = _leaky_relu(self[f"conv_up{number + 1}"](x))
        return self["conv_last"](_leaky_relu(self["conv_hr"](x)))


class ResidualBlock(nn.ModuleDict):
    """The paper's residual-in-residual dense block."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__({f"rdb{number}": DenseBlock(features, growth) for number in (1, 2, 3)})

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, features, h, w) to the same shape."""
        residual = x
        for block in self.values():
            residual = block(residual)
        return x + RESIDUAL_SCALE * residual


class DenseBlock(nn.ModuleDict):
    """Five convolutions; each gets the block's input and the outputs of all convolutions before it."""

    def __init__(self, features: int, growth: int) -> None:
        channels = (growth, growth, growth, growth, features)
        super().__init__(
            {f"conv{k + 1}": _make_conv(features + k * growth, out) for k, out in enumerate(channels)}
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, features, h, w) to the same shape."""
        inputs = [x]
        *growing, last = self.values()
        for conv in growing:
            inputs.append(_leaky_relu(conv(torch.cat(inputs, 1))))
        return x + RESIDUAL_SCALE * last(torch.cat(inputs, 1))


def _make_conv(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1)


def _leaky_relu(x: Tensor) -> Tensor:
    # in place: at full height and width a second copy would be the largest tensor in memory
    return functional.leaky_relu(x, SLOPE, inplace=True)
