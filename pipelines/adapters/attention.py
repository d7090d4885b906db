"""Decoupled cross-attention (IP-Adapter, Ye et al. 2023): a UNet attends to the tokens of images too.

Each cross-attention has a second pair of matrices, for the keys and values of image tokens. Every image has an
attention of its own, whose output is scaled and added to the text's:

    out = Attn(Q, K, V) + sum of scale_i * Attn(Q, W_k' c_i, W_v' c_i)

Only rows with images compute it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of queries (B, heads, positions, width) to keys and values (B, heads, others, width)."""


@dataclass(frozen=True, slots=True)
class RowVibe:
    """One image of a row: its tokens (tokens, width), and the factor of the attention to them."""

    tokens: Tensor
    scale: float


RowVibes = tuple[RowVibe, ...]


@dataclass(frozen=True, slots=True)
class ImageKeys:
    """One image of a row, projected.

    Attributes:
        keys_values: of all layers, (tokens, width); each layer has the part that it has of a prompt's.
        scale: a tensor of one number.
    """

    keys_values: Tensor
    scale: Tensor


@dataclass(frozen=True, slots=True)
class ImageGroup:
    """The rows of a pass that have equally many images.

    Attributes:
        rows: their indices; None for all rows.
        keys_values: (rows, images, tokens, width).
        scales: (rows, images, 1, 1, 1).
    """

    rows: Tensor | None
    keys_values: Tensor
    scales: Tensor


class ImageProjections(nn.Module):
    """The matrices for the keys and values of image tokens in one cross-attention, named as in adapter files."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(width, inner, bias=False)
        self.to_v_ip = nn.Linear(width, inner, bias=False)


def project_image(vibe: RowVibe, layers: Sequence[ImageProjections]) -> ImageKeys:
    """Return the keys and values of an image, for the layers of a UNet in the order of image adapters."""
    parts = [projection(vibe.tokens) for layer in layers for projection in (layer.to_k_ip, layer.to_v_ip)]
    return ImageKeys(torch.cat(parts, dim=-1), vibe.tokens.new_full((), vibe.scale))


def group_images(rows: Sequence[Sequence[ImageKeys]]) -> tuple[ImageGroup, ...]:
    """Group the rows of a pass by their number of images; rows without any are in no group."""
    indices: dict[int, list[int]] = {}
    for index, images in enumerate(rows):
        if images:
            indices.setdefault(len(images), []).append(index)
    return tuple(_stack_rows(rows, members) for members in indices.values())


def _stack_rows(rows: Sequence[Sequence[ImageKeys]], members: Sequence[int]) -> ImageGroup:
    keys = torch.stack([torch.stack([image.keys_values for image in rows[row]]) for row in members])
    scales = torch.stack([torch.stack([image.scale for image in rows[row]]) for row in members])
    index = None if len(members) == len(rows) else torch.tensor(members, device=keys.device)
    return ImageGroup(index, keys, scales[..., None, None, None])


def attend_to_images(
    output: Tensor, query: Tensor, group: ImageGroup, keys_values: tuple[Tensor, Tensor], attend: Attend
) -> Tensor:
    """Return the output of the attention to the text, with the scaled attentions to images added in a group's rows.

    Args:
        query: of all rows, (B, heads, positions, width).
        keys_values: one layer's for the rows of the group, each (rows, images, heads, tokens, width).
    """
    queries = query if group.rows is None else query[group.rows]
    images, heads = keys_values[0].shape[1:3]
    # each image has heads of its own, so one call computes all attentions
    key, value = (part.flatten(1, 2) for part in keys_values)
    attended = attend(queries if images == 1 else queries.repeat(1, images, 1, 1), key, value)
    apart = attended.reshape(len(attended), images, heads, *attended.shape[2:])
    added = (apart * group.scales).sum(1)
    if group.rows is None:
        return output + added
    return output.index_copy(0, group.rows, output[group.rows] + added)


def split_heads(states: Tensor, heads: int) -> Tensor:
    """Return states (..., positions, heads * width) as (..., heads, positions, width)."""
    *outer, inner = states.shape
    return states.view(*outer, heads, inner // heads).transpose(-3, -2)
