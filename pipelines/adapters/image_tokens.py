"""The networks that turn an encoded image into tokens; their weights are named as in the files of IP-Adapters."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from pipelines.adapters.attention import split_heads
from pipelines.adapters.ip_adapter import HEAD_WIDTH, IpAdapter

GROWTH = 4
"""Width of the hidden layer of a feed-forward network, in widths of its input."""


class Projection(nn.Module):
    """The projection of "base": from an embedding (B, inputs) to tokens (B, count, width)."""

    def __init__(self, inputs: int, width: int, count: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, count * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, embedding: Tensor) -> Tensor:
        """Return the tokens of an embedding."""
        width = self.norm.weight.shape[0]
        return self.norm(self.proj(embedding).unflatten(-1, (-1, width)))


class Resampler(nn.Module):
    """The projection of "plus" (a Perceiver): from states (B, patches, inputs) to tokens (B, count, width)."""

    def __init__(self, adapter: IpAdapter) -> None:
        super().__init__()
        inner = adapter.inner
        self.latents = nn.Parameter(torch.empty(1, adapter.count, inner))
        self.proj_in = nn.Linear(adapter.inputs, inner)
        self.proj_out = nn.Linear(inner, adapter.width)
        self.norm_out = nn.LayerNorm(adapter.width)
        self.layers = nn.ModuleList(
            nn.ModuleList([LatentAttention(inner, adapter.heads), build_feed_forward(inner)])
            for _ in range(adapter.depth)
        )

    def forward(self, states: Tensor) -> Tensor:
        """Return the tokens of the states of an image's patches."""
        states = self.proj_in(states)
        latents = self.latents.expand(len(states), -1, -1)
        for layer in self.layers:
            attention, feed_forward = layer.children()
            latents = latents + attention(states, latents)
            latents = latents + feed_forward(latents)
        return self.norm_out(self.proj_out(latents))


class LatentAttention(nn.Module):
    """The attention of latents to an image's states and to themselves."""

    def __init__(self, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(inner), nn.LayerNorm(inner)
        self.to_q = nn.Linear(inner, heads * HEAD_WIDTH, bias=False)
        self.to_kv = nn.Linear(inner, 2 * heads * HEAD_WIDTH, bias=False)
        self.to_out = nn.Linear(heads * HEAD_WIDTH, inner, bias=False)

    def forward(self, states: Tensor, latents: Tensor) -> Tensor:
        """Return the attention's output for the latents."""
        states, latents = self.norm1(states), self.norm2(latents)
        key, value = self.to_kv(torch.cat([states, latents], dim=1)).chunk(2, dim=-1)
        query, key, value = (split_heads(part, self.heads) for part in (self.to_q(latents), key, value))
        return self.to_out(scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def build_feed_forward(inner: int) -> nn.Sequential:
    """Return a normalized network with one hidden layer and no biases."""
    return nn.Sequential(
        nn.LayerNorm(inner),
        nn.Linear(inner, GROWTH * inner, bias=False),
        nn.GELU(),
        nn.Linear(GROWTH * inner, inner, bias=False),
    )


def build_projection(adapter: IpAdapter) -> nn.Module:
    """Return the projection of an adapter, its weights not yet loaded."""
    if adapter.kind == "base":
        return Projection(adapter.inputs, adapter.width, adapter.count)
    return Resampler(adapter)
