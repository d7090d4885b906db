"""The UNet. Its weights have the names that they have in diffusers' UNet2DConditionModel, whose output it returns.

What it computes of time, sizes and prompts is separate from the pass over the latents: it is done once for an image.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import log
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from pipelines.adapters.attention import Attend
from pipelines.sampling.deep_shrink import shrink, unshrink
from pipelines.unet.attention import (
    Context,
    CrossAttention,
    Gate,
    SelfAttention,
    Transformer,
    TransformerBlock,
)
from pipelines.unet.blocks import DownBlock, MiddleBlock, UpBlock
from pipelines.unet.layers import Resnet, make_list, normalize
from pipelines.unet.quantized_linear import QuantizedFormat, QuantizedLinear
from pipelines.unet.shape import UNetShape, read_shape
from pipelines.weights.architecture import Config

LATENT_CHANNELS = 4
Residuals: TypeAlias = tuple[Sequence[Tensor], Tensor]
"""What ControlNets add to the features of a UNet: to those that its down blocks pass on, and to its middle block's."""


class UNetModel(nn.Module):
    """A UNet, which predicts noise or velocity from noisy latents.

    Args:
        config: arguments of diffusers' class.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        shape = self.shape = read_shape(config)
        widths = [level.width for level in shape.levels]
        self.conv_in = nn.Conv2d(shape.channels, widths[0], 3, padding=1)
        self.time_embedding = Embedding(widths[0], shape.embedding)
        self.add_embedding = None if shape.added is None else Embedding(shape.added, shape.embedding)
        self.down_blocks = make_list(_make_down_blocks(shape))
        self.up_blocks = make_list(_make_up_blocks(shape))
        self.mid_block = MiddleBlock(shape)
        self.conv_norm_out = nn.GroupNorm(shape.groups, widths[0], shape.eps)
        self.conv_out = nn.Conv2d(widths[0], LATENT_CHANNELS, 3, padding=1)
        self.uses_kernels = False
        self.width = self._divide_width()

    @property
    def cross_attentions(self) -> list[CrossAttention]:
        """All cross-attentions, in the order in which image adapters number them."""
        blocks = (*self.down_blocks, *self.up_blocks, self.mid_block)
        return [layer for block in blocks for layer in block.modules() if isinstance(layer, CrossAttention)]

    def _divide_width(self) -> int:
        """Give each cross-attention its part of `Context.keys_values`, and return the width of all."""
        start = 0
        for layer in self.cross_attentions:
            layer.start = start
            start += 2 * layer.width
        return start

    def set_attention(self, attend: Attend) -> None:
        """Set the function that computes attention."""
        for layer in self.modules():
            if isinstance(layer, SelfAttention | CrossAttention):
                layer.attend = attend

    def set_kernels(self, uses_kernels: bool) -> None:
        """Set whether Triton's kernels are used where they run."""
        for layer in self.modules():
            if isinstance(layer, UNetModel | Resnet | Transformer | Gate):
                layer.uses_kernels = uses_kernels

    def fuse(self) -> None:
        """Fuse the projections of all self-attentions."""
        for layer in self.modules():
            if isinstance(layer, SelfAttention):
                layer.fuse()

    def iter_blocks(self) -> Iterator[TransformerBlock]:
        """Yield all transformer blocks, in the order of their names."""
        return (layer for layer in self.modules() if isinstance(layer, TransformerBlock))

    def quantize(self, name: QuantizedFormat, device: torch.device) -> None:
        """Quantize the linear layers of all transformer blocks on a device, one by one; not yet fused."""
        for block in self.iter_blocks():
            for path, layer in block.list_quantizable():
                block.set_submodule(path, QuantizedLinear(layer, name, device))

    def embed(self, timesteps: Tensor, pooled: Tensor | None, size_ids: Tensor | None) -> Tensor:
        """Return the activated embeddings (T, width) of timesteps (T,) for one prompt and size.

        Args:
            pooled: the prompt's pooled embedding (width,); None for networks without it.
            size_ids: SDXL's six numbers; None for networks without them.
        """
        dtype = self.conv_in.weight.dtype
        embedding = self.time_embedding(make_sinusoids(timesteps, self.shape.levels[0].width).to(dtype))
        if self.add_embedding is not None and self.shape.size_width is not None:
            assert pooled is not None
            assert size_ids is not None
            sizes = make_sinusoids(size_ids, self.shape.size_width).flatten()
            added = torch.cat([pooled.to(dtype), sizes.to(dtype)])
            embedding = embedding + self.add_embedding(added[None])
        return silu(embedding)

    def project(self, context: Tensor) -> Tensor:
        """Return all layers' keys and values (tokens, width) for prompt embeddings (tokens, width)."""
        context = context.to(self.conv_in.weight.dtype)
        return torch.cat([part for layer in self.cross_attentions for part in layer.project(context)], dim=-1)

    def forward(
        self,
        sample: Tensor,
        embedding: Tensor,
        context: Context,
        halvings: int = 0,
        residuals: Residuals | None = None,
    ) -> Tensor:
        """Return the prediction (B, 4, h, w) for latents (B, channels, h, w).

        Args:
            embedding: of time, sizes and pooled prompt, (B, width), as `embed` returns it.
            halvings: 2x downscales of the inner features, see sampling/deep_shrink.py.
            residuals: what ControlNets add.
        """
        skips = self._descend(sample, embedding, context, halvings)
        return self._finish(
            self._compute_deep(skips, embedding, context, halvings, residuals),
            skips,
            embedding,
            context,
            halvings,
        )

    def run_full(self, sample: Tensor, embedding: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Return what `forward` does, and the deep features: what the outermost level reads of all others."""
        skips = self._descend(sample, embedding, context, 0)
        deep = self._compute_deep(skips, embedding, context, 0, None)
        return self._finish(deep, skips, embedding, context, 0), deep

    def run_shallow(self, sample: Tensor, embedding: Tensor, context: Context, deep: Tensor) -> Tensor:
        """Return the prediction of the outermost level, with deep features of a full pass."""
        skips = [self.conv_in(sample)]
        skips += self.down_blocks[0](skips[-1], embedding, context)
        return self._finish(deep, skips, embedding, context, 0)

    def _descend(self, sample: Tensor, embedding: Tensor, context: Context, halvings: int) -> list[Tensor]:
        """Return the features that the way down passes on to the way up."""
        skips = [self.conv_in(sample)]
        for number, block in enumerate(self.down_blocks):
            skips += block(skips[-1], embedding, context)
            if block.downsamplers is not None:
                x = block.downsamplers[0](skips[-1])
                skips.append(shrink(x, halvings, self._multiple) if number == 0 else x)
        return skips

    def _compute_deep(
        self,
        skips: list[Tensor],
        embedding: Tensor,
        context: Context,
        halvings: int,
        residuals: Residuals | None,
    ) -> Tensor:
        """Return the features of the second level on the way up, which are not upsampled yet.

        What they are made of is taken from `skips`; that of the outermost level is left.
        """
        x = self.mid_block(skips[-1], embedding, context)
        if residuals is not None:
            skips[:] = [skip + added for skip, added in zip(skips, residuals[0], strict=True)]
            x = x + residuals[1]
        x = self.up_blocks[0](x, skips, embedding, context)
        for below, block in pairwise(self.up_blocks[:-1]):
            x = block(_upsample(below, x, skips, halvings), skips, embedding, context)
        return x

    def _finish(
        self, x: Tensor, skips: list[Tensor], embedding: Tensor, context: Context, halvings: int
    ) -> Tensor:
        """Return the prediction from the features of the second level and those of the outermost one."""
        x = _upsample(self.up_blocks[-2], x, skips, halvings)
        if halvings:
            x = unshrink(x, skips[-1])
        x = self.up_blocks[-1](x, skips, embedding, context)
        return self.conv_out(normalize(x, self.conv_norm_out, self.uses_kernels))

    @property
    def _multiple(self) -> int:
        """Of which shrunk features have to be, so that the later downsamplers divide them evenly."""
        return 2 ** (len(self.down_blocks) - 2)


class Embedding(nn.Module):
    """Two linear layers that embed sinusoids."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inner, outer)
        self.linear_2 = nn.Linear(outer, outer)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(silu(self.linear_1(x)))


def _upsample(block: UpBlock, x: Tensor, skips: list[Tensor], halvings: int) -> Tensor:
    """Return a block's features upscaled to the size of those that the next block reads, or by 2 where these differ."""
    assert block.upsamplers is not None
    height, width = x.shape[-2:] if halvings else skips[-1].shape[-2:]
    return block.upsamplers[0](x, (2 * height, 2 * width) if halvings else (height, width))


def make_sinusoids(values: Tensor, width: int) -> Tensor:
    """Return cosines and sines (..., width) of float32 values (...,) (Vaswani et al. 2017)."""
    half = width // 2
    powers = torch.arange(half, dtype=torch.float32, device=values.device) * (-log(10000) / half)
    angles = values[..., None].float() * powers.exp()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _make_down_blocks(shape: UNetShape) -> list[DownBlock]:
    inner = [shape.levels[0].width, *(level.width for level in shape.levels)]
    last = len(shape.levels) - 1
    return [
        DownBlock(shape, level, inner[number], number == last) for number, level in enumerate(shape.levels)
    ]


def _make_up_blocks(shape: UNetShape) -> list[UpBlock]:
    levels = list(reversed(shape.levels))
    blocks: list[UpBlock] = []
    for number, level in enumerate(levels):
        below = levels[max(0, number - 1)].width
        above = levels[min(number + 1, len(levels) - 1)].width
        read = [*(level.width for _ in range(shape.resnets)), above]
        blocks.append(UpBlock(shape, level, below, read, number == len(levels) - 1))
    return blocks
