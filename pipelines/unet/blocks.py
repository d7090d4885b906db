"""The blocks of a UNet: residual blocks and transformers at one resolution."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipelines.unet.attention import Context, Transformer
from pipelines.unet.layers import Downsampler, Resnet, Upsampler, make_list
from pipelines.unet.shape import Level, UNetShape


class DownBlock(nn.Module):
    """A level on the way down."""

    def __init__(self, shape: UNetShape, level: Level, inner: int, is_last: bool) -> None:
        super().__init__()
        inputs = [inner, *(level.width for _ in range(shape.resnets - 1))]
        self.resnets = _make_resnets(shape, inputs, level.width)
        self.attentions = _make_transformers(shape, level, shape.resnets)
        self.downsamplers = None if is_last else make_list([Downsampler(level.width)])

    def forward(self, x: Tensor, embedding: Tensor, context: Context) -> list[Tensor]:
        """Return the features behind each of its residual blocks and transformers."""
        outputs: list[Tensor] = []
        for number, resnet in enumerate(self.resnets):
            x = resnet(x, embedding)
            if self.attentions is not None:
                x = self.attentions[number](x, context)
            outputs.append(x)
        return outputs


class MiddleBlock(nn.Module):
    """A transformer between two residual blocks, at the lowest resolution."""

    def __init__(self, shape: UNetShape) -> None:
        super().__init__()
        self.attentions = make_list([Transformer(shape.middle, shape)])
        self.resnets = _make_resnets(shape, [shape.middle.width] * 2, shape.middle.width)

    def forward(self, x: Tensor, embedding: Tensor, context: Context) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, embedding), context)
        return self.resnets[1](x, embedding)


class UpBlock(nn.Module):
    """A level on the way up, whose residual blocks read the features from the way down too.

    Args:
        inner: channels of the features from below.
        skips: channels of those from the way down, in the order in which they are read.
    """

    def __init__(
        self, shape: UNetShape, level: Level, inner: int, skips: Iterable[int], is_last: bool
    ) -> None:
        super().__init__()
        below = [inner, *(level.width for _ in range(shape.resnets))]
        inputs = [width + skip for width, skip in zip(below, skips, strict=True)]
        self.resnets = _make_resnets(shape, inputs, level.width)
        self.attentions = _make_transformers(shape, level, len(inputs))
        self.upsamplers = None if is_last else make_list([Upsampler(level.width)])

    def forward(self, x: Tensor, skips: list[Tensor], embedding: Tensor, context: Context) -> Tensor:
        """Return its features; those that it reads are taken from the end of `skips`."""
        for number, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, skips.pop()], dim=1), embedding)
            if self.attentions is not None:
                x = self.attentions[number](x, context)
        return x


def _make_resnets(shape: UNetShape, inputs: Iterable[int], width: int) -> list[Resnet]:
    sizes = shape.embedding, shape.groups, shape.eps
    return make_list(Resnet(inner, width, *sizes) for inner in inputs)


def _make_transformers(shape: UNetShape, level: Level, count: int) -> list[Transformer] | None:
    return make_list(Transformer(level, shape) for _ in range(count)) if level.depth else None
