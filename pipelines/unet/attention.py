"""Transformers: attention to the features themselves, to the prompt, and to reference images.

The keys and values of prompt and images are inputs. They depend on nothing that changes from step to step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from pipelines.adapters.attention import Attend, ImageGroup, attend_to_images, split_heads
from pipelines.kernels.geglu import geglu
from pipelines.unet.layers import make_list, normalize
from pipelines.unet.quantized_linear import QuantizedLinear, can_quantize, multiply
from pipelines.unet.shape import Level, UNetShape


@dataclass(frozen=True, slots=True)
class Context:
    """What all cross-attentions of a pass attend to.

    Attributes:
        keys_values: of the prompts, for all layers, (B, tokens, width); each layer has its own part of the width.
        images: of the rows with reference images.
    """

    keys_values: Tensor
    images: Sequence[ImageGroup] = ()


class SelfAttention(nn.Module):
    """Attention of features to each other.

    The three projections are one matrix product where their weights are adjacent in memory, see `fuse`.
    """

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.heads = level.heads
        self.attend: Attend = scaled_dot_product_attention
        self.to_q, self.to_k, self.to_v = (nn.Linear(level.width, level.width, bias=False) for _ in range(3))
        self.to_out = make_list([nn.Linear(level.width, level.width)])
        self.fused: Tensor | None = None
        self.fused_scale: Tensor | None = None  # of quantized weights

    def forward(self, x: Tensor) -> Tensor:
        if self.fused is None:
            parts = self.to_q(x), self.to_k(x), self.to_v(x)
        elif self.fused_scale is None:
            parts = linear(x, self.fused).chunk(3, dim=-1)
        else:
            parts = multiply(x, self.fused, self.fused_scale).chunk(3, dim=-1)
        query, key, value = (split_heads(part, self.heads) for part in parts)
        return self.to_out[0](merge_heads(self.attend(query, key, value)))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Move or convert the weights, which torch does one by one, and fuse them again."""
        super()._apply(fn, recurse)  # pyright: ignore[reportUnknownMemberType]
        if self.fused is not None:
            self.fuse()
        return self

    def fuse(self) -> None:
        """Store the three matrices as one, of which they become parts."""
        layers = self.to_q, self.to_k, self.to_v
        self.fused = torch.cat([layer.weight.detach() for layer in layers])
        for layer, part in zip(layers, self.fused.chunk(3), strict=True):
            layer.weight = nn.Parameter(part, requires_grad=False)
        quantized = [layer for layer in layers if isinstance(layer, QuantizedLinear)]
        if quantized:
            self.fused_scale = torch.cat([layer.scale for layer in quantized])
            for layer, part in zip(quantized, self.fused_scale.chunk(3), strict=True):
                layer.scale = part


class CrossAttention(nn.Module):
    """Attention of features to prompts and images.

    Args:
        context: width of the prompt embeddings.

    Attributes:
        start: where its keys begin in the width of `Context.keys_values`; its values follow them.
    """

    def __init__(self, level: Level, context: int) -> None:
        super().__init__()
        self.heads, self.width = level.heads, level.width
        self.attend: Attend = scaled_dot_product_attention
        self.to_q = nn.Linear(level.width, level.width, bias=False)
        self.to_k, self.to_v = (nn.Linear(context, level.width, bias=False) for _ in range(2))
        self.to_out = make_list([nn.Linear(level.width, level.width)])
        self.start = 0

    def forward(self, x: Tensor, context: Context) -> Tensor:
        query = split_heads(self.to_q(x), self.heads)
        key, value = self.select(context.keys_values)
        output = self.attend(query, key, value)
        for group in context.images:
            output = attend_to_images(output, query, group, self.select(group.keys_values), self.attend)
        return self.to_out[0](merge_heads(output))

    def select(self, keys_values: Tensor) -> tuple[Tensor, Tensor]:
        """Return this layer's keys and values, (..., heads, tokens, width of a head)."""
        part = keys_values.narrow(-1, self.start, 2 * self.width)
        key, value = part.chunk(2, dim=-1)
        return split_heads(key, self.heads), split_heads(value, self.heads)

    def project(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of prompt embeddings (tokens, width)."""
        return self.to_k(context), self.to_v(context)


class Gate(nn.Module):
    """The first half of a feed-forward network: a linear layer with a gate (GEGLU, Shazeer 2020)."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inner, 2 * outer)

        self.uses_kernels = False

    def forward(self, x: Tensor) -> Tensor:
        return geglu(self.proj(x), fused=self.uses_kernels)


class FeedForward(nn.Module):
    """Two linear layers, four times as wide between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # the second one is the dropout that training has there
        self.net = nn.ModuleList([Gate(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and a feed-forward network, each added to its input."""

    def __init__(self, level: Level, context: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(level.width)
        self.attn1 = SelfAttention(level)
        self.norm2 = nn.LayerNorm(level.width)
        self.attn2 = CrossAttention(level, context)
        self.norm3 = nn.LayerNorm(level.width)
        self.ff = FeedForward(level.width)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context) + x
        return self.ff(self.norm3(x)) + x

    def list_quantizable(self) -> list[tuple[str, nn.Linear]]:
        """Return the linear layers that can be quantized, by name: those of every pass, so none for prompts."""
        apart = self.attn2.to_k, self.attn2.to_v
        modules = cast("dict[str, nn.Module]", dict(cast("Any", self).named_modules()))
        layers = [(name, layer) for name, layer in modules.items() if isinstance(layer, nn.Linear)]
        return [(name, layer) for name, layer in layers if layer not in apart and can_quantize(layer)]


class Transformer(nn.Module):
    """Transformer blocks over all positions of features (B, width, h, w), added to them."""

    def __init__(self, level: Level, shape: UNetShape) -> None:
        super().__init__()
        if level.width % level.heads:
            raise ValueError("the width is not a multiple of the number of heads")
        self.linear, self.uses_kernels = shape.linear, False
        self.norm = nn.GroupNorm(shape.groups, level.width, 1e-6)
        self.proj_in, self.proj_out = (_make_projection(level.width, shape.linear) for _ in range(2))
        blocks = (TransformerBlock(level, shape.context) for _ in range(level.depth))
        self.transformer_blocks = make_list(blocks)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        size, states = x.shape[2:], normalize(x, self.norm, self.uses_kernels, silu=False)
        states = self.proj_in(_flatten(states)) if self.linear else _flatten(self.proj_in(states))
        for block in self.transformer_blocks:
            states = block(states, context)
        # first the input, so that the sum has its memory format
        if self.linear:
            return x + _unflatten(self.proj_out(states), size)
        return x + self.proj_out(_unflatten(states, size))


def _make_projection(width: int, linear: bool) -> nn.Module:
    return nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)


def _flatten(x: Tensor) -> Tensor:
    """Return features (B, width, h, w) as (B, positions, width)."""
    return x.flatten(2).transpose(1, 2)


def _unflatten(states: Tensor, size: Sequence[int]) -> Tensor:
    return states.transpose(1, 2).reshape(len(states), -1, *size)


def merge_heads(states: Tensor) -> Tensor:
    """Return states (..., heads, positions, width) as (..., positions, heads * width)."""
    return states.transpose(-3, -2).flatten(-2)
