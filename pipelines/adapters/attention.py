"""Decoupled cross-attention (IP-Adapter, Ye et al. 2023): a UNet attends to the tokens of images too.

Each cross-attention has a second pair of matrices, for the keys and values of image tokens. Every image has an
attention of its own, whose output is scaled and added to the text's:

    out = Attn(Q, K, V) + sum of scale_i * Attn(Q, W_k' c_i, W_v' c_i)

Only rows with images compute it. A pass without such rows runs the UNet's previous attention processors.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True, slots=True)
class RowVibe:
    """One image of a row: its tokens (tokens, width), and the factor of the attention to them."""

    tokens: Tensor
    scale: float


RowVibes = tuple[RowVibe, ...]


@dataclass(frozen=True, slots=True)
class VibeGroup:
    """The rows of a pass that have equally many images.

    Attributes:
        rows: their indices; None for all rows.
        tokens: (rows, images, tokens, width).
        scales: (rows, images, 1, 1, 1).
    """

    rows: Tensor | None
    tokens: Tensor
    scales: Tensor


class ImageProjections(nn.Module):
    """The matrices for the keys and values of image tokens in one cross-attention, named as in adapter files."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(width, inner, bias=False)
        self.to_v_ip = nn.Linear(width, inner, bias=False)


class ImageAttention:
    """The attention of one UNet of diffusers to image tokens.

    Attributes:
        layers: the matrices of each cross-attention, in the order of `shapes`; none until an adapter is installed.
    """

    def __init__(self, unet: nn.Module) -> None:
        self._unet = cast("Any", unet)
        self.layers: Sequence[ImageProjections] = ()
        self.groups: Sequence[VibeGroup] = ()
        self.install()

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The shape of each cross-attention's matrix of keys, in the order in which adapter files number them."""
        modules = (self._unet.get_submodule(name.removesuffix(".processor")) for name in self._list_names())
        return tuple(tuple(module.to_k.weight.shape) for module in modules)

    def install(self) -> None:
        """Wrap the UNet's current processors."""
        processors = self._unet.attn_processors
        for index, name in enumerate(self._list_names()):
            processors[name] = DecoupledAttention(processors[name], self, index)
        self._unet.set_attn_processor(processors)

    def _list_names(self) -> list[str]:
        return [name for name in self._unet.attn_processors if name.endswith("attn2.processor")]

    @contextmanager
    def attend(self, vibes: Sequence[RowVibes]) -> Generator[None]:
        """Let the rows of the passes inside the context attend to their images; `vibes` has an entry for each row."""
        self.groups = group_vibes(vibes)
        try:
            yield
        finally:
            self.groups = ()


class DecoupledAttention:
    """A processor of one cross-attention: `plain` until a row has images.

    With images the text's attention is that of diffusers' AttnProcessor2_0, so that rows without any keep their bits.
    """

    def __init__(self, plain: object, attention: ImageAttention, index: int) -> None:
        self._plain, self._attention, self._index = cast("Any", plain), attention, index

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        groups = self._attention.groups
        if not groups or encoder_hidden_states is None:
            return self._plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        matrices = cast("Any", attn)
        query = split_heads(matrices.to_q(hidden_states), matrices.heads)
        key = split_heads(matrices.to_k(encoder_hidden_states), matrices.heads)
        value = split_heads(matrices.to_v(encoder_hidden_states), matrices.heads)
        output = scaled_dot_product_attention(query, key, value)
        layer = self._attention.layers[self._index]
        for group in groups:
            if group.rows is None:
                output = output + _attend_to_images(query, group, layer)
            else:
                output[group.rows] += _attend_to_images(query[group.rows], group, layer)
        return matrices.to_out[0](output.transpose(1, 2).flatten(2))


def _attend_to_images(query: Tensor, group: VibeGroup, layer: ImageProjections) -> Tensor:
    """Return the scaled sum of the attentions of queries (rows, heads, positions, width) to a group's images."""
    images, heads = group.tokens.shape[1], query.shape[1]
    # each image has heads of its own, so one call computes all attentions
    key, value = (
        split_heads(project(group.tokens), heads).flatten(1, 2) for project in (layer.to_k_ip, layer.to_v_ip)
    )
    queries = query if images == 1 else query.repeat(1, images, 1, 1)
    attended = scaled_dot_product_attention(queries, key, value)
    apart = attended.reshape(len(attended), images, heads, *attended.shape[2:])
    return (apart * group.scales).sum(1)


def split_heads(states: Tensor, heads: int) -> Tensor:
    """Return states (..., positions, heads * width) as (..., heads, positions, width)."""
    *outer, inner = states.shape
    return states.view(*outer, heads, inner // heads).transpose(-3, -2)


def group_vibes(vibes: Sequence[RowVibes]) -> tuple[VibeGroup, ...]:
    """Group the rows of a pass by their number of images; rows without any are in no group."""
    indices: dict[int, list[int]] = {}
    for row, row_vibes in enumerate(vibes):
        if row_vibes:
            indices.setdefault(len(row_vibes), []).append(row)
    return tuple(_stack_rows(vibes, rows) for rows in indices.values())


def _stack_rows(vibes: Sequence[RowVibes], rows: Sequence[int]) -> VibeGroup:
    tokens = torch.stack([torch.stack([vibe.tokens for vibe in vibes[row]]) for row in rows])
    scales = torch.tensor([[vibe.scale for vibe in vibes[row]] for row in rows])
    index = None if len(rows) == len(vibes) else torch.tensor(rows, device=tokens.device)
    return VibeGroup(index, tokens, scales[..., None, None, None].to(tokens))
