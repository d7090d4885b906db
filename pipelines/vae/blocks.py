"""The blocks of a VAE: residual blocks at one resolution, and attention at the lowest."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from pipelines.unet.layers import Resnet, Upsampler, make_list, normalize
from pipelines.vae.shape import VaeShape

EPS = 1e-6


class EncoderBlock(nn.Module):
    """A level of the encoder."""

    def __init__(self, shape: VaeShape, inner: int, width: int, is_last: bool) -> None:
        super().__init__()
        self.resnets = _make_resnets(shape, [inner, *(width for _ in range(shape.resnets - 1))], width)
        self.downsamplers = None if is_last else make_list([CornerDownsampler(width)])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.downsamplers is None else self.downsamplers[0](x)


class DecoderBlock(nn.Module):
    """A level of the decoder."""

    def __init__(self, shape: VaeShape, inner: int, width: int, is_last: bool) -> None:
        super().__init__()
        self.resnets = _make_resnets(shape, [inner, *(width for _ in range(shape.resnets))], width)
        self.upsamplers = None if is_last else make_list([Upsampler(width)])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        if self.upsamplers is None:
            return x
        height, width = x.shape[-2:]
        return self.upsamplers[0](x, (2 * height, 2 * width))


class AttentionBlock(nn.Module):
    """Attention between two residual blocks, at the lowest resolution."""

    def __init__(self, shape: VaeShape) -> None:
        super().__init__()
        width = shape.widths[-1]
        self.attentions = make_list([PositionAttention(width, shape.groups)])
        self.resnets = _make_resnets(shape, [width, width], width)

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class PositionAttention(nn.Module):
    """Attention of all positions of features to each other, with one head, added to them."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = make_list([nn.Linear(width, width)])
        self.uses_kernels = False

    def forward(self, x: Tensor) -> Tensor:
        states = normalize(x, self.group_norm, self.uses_kernels, silu=False).flatten(2).transpose(1, 2)
        parts = (layer(states)[:, None] for layer in (self.to_q, self.to_k, self.to_v))
        states = self.to_out[0](scaled_dot_product_attention(*parts)[:, 0])
        # first the input, so that the sum has its memory format
        return x + states.transpose(1, 2).reshape(x.shape)


class CornerDownsampler(nn.Module):
    """Halves height and width, with zeros at the right and lower edges alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(pad(x, (0, 1, 0, 1)))


def _make_resnets(shape: VaeShape, inputs: Iterable[int], width: int) -> list[Resnet]:
    return make_list(Resnet(inner, width, None, shape.groups, EPS) for inner in inputs)
