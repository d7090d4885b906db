"""The change that each kind of LoRA makes to a weight, computed in float32."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
"""A layer's tensors by their roles, in float32."""
EPSILON = torch.finfo(torch.float32).eps


def compute_change(kind: str, tensors: Tensors, scale: float, base: Tensor, strength: float) -> Tensor:
    """Return what is added to a weight, shaped like it.

    Args:
        kind: the name of a LoraKind.
        scale: alpha / rank, 1 for kinds without a rank.
        base: the weight as the model has it, in float32.
    """
    if kind == "OFT":
        return _rotate(tensors, base, strength) - base
    if kind == "IA3":
        return strength * _scale_channels(tensors, base)
    change = scale * PRODUCTS[kind](tensors).reshape(base.shape)
    if "dora_scale" in tensors:
        change = _decompose(base + change, tensors["dora_scale"]) - base
    return strength * change


def _multiply_lora(tensors: Tensors) -> Tensor:
    up, down, mid = tensors["up"].flatten(1), tensors["down"], tensors.get("mid")
    if mid is None:
        return up @ down.flatten(1)
    return torch.einsum("mn...,im,nj->ij...", mid, up, down.flatten(1))


def _multiply_loha(tensors: Tensors) -> Tensor:
    first, second = (_restore(tensors, f"hada_w{side}", f"hada_t{side}") for side in (1, 2))
    return first * second


def _multiply_lokr(tensors: Tensors) -> Tensor:
    first, second = (_restore(tensors, f"lokr_w{side}", f"lokr_t{side}") for side in (1, 2))
    return torch.kron(first, second)


def _restore(tensors: Tensors, full: str, core: str) -> Tensor:
    """Return a matrix that is stored as it is, as a product of two, or as a Tucker core between two."""
    if full in tensors:
        return tensors[full].flatten(1)
    left, right, inner = tensors[f"{full}_a"], tensors[f"{full}_b"], tensors.get(core)
    if inner is None:
        return left @ right.flatten(1)
    return torch.einsum("ij...,jr,ip->pr...", inner, right, left).flatten(1)


def _pick(role: str) -> Callable[[Tensors], Tensor]:
    return lambda tensors: tensors[role]


PRODUCTS: Mapping[str, Callable[[Tensors], Tensor]] = {
    "LoRA": _multiply_lora,
    "LoHa": _multiply_loha,
    "LoKr": _multiply_lokr,
    "full difference": _pick("diff"),
    "bias difference": _pick("diff_b"),
    "norm": _pick("w_norm"),
    "norm bias": _pick("b_norm"),
}


def _decompose(weight: Tensor, magnitude: Tensor) -> Tensor:
    """Scale a weight's rows to the lengths in DoRA's magnitude; its columns, if the shape of the magnitude says so.

    Trainers before 2024 used columns. A flat magnitude of a square matrix is peft's, which uses rows.
    """
    rows, is_column = weight.shape[0], magnitude.ndim > 1 and magnitude.shape[0] == 1 and weight.shape[0] != 1
    if not is_column and magnitude.numel() == rows:
        lengths = _measure_rows(weight).view(-1, *(1 for _ in weight.shape[1:]))
    else:
        lengths = _measure_rows(weight.transpose(0, 1)).view(1, -1, *(1 for _ in weight.shape[2:]))
    return weight * (magnitude.reshape(lengths.shape) / (lengths + EPSILON))


def _measure_rows(weight: Tensor) -> Tensor:
    """Return the lengths of a weight's rows."""
    return weight.flatten(1).square().sum(1).sqrt()


def _scale_channels(tensors: Tensors, base: Tensor) -> Tensor:
    """Return what IA3 adds: each input or output channel of the weight times its factor."""
    factors = tensors["weight"].flatten()
    if tensors["on_input"].item():
        return base * factors.view(1, -1, *(1 for _ in base.shape[2:]))
    return base * factors.view(-1, *(1 for _ in base.shape[1:]))


def _rotate(tensors: Tensors, base: Tensor, strength: float) -> Tensor:
    """Rotate a weight's rows by OFT's blocks, or by stages of them as in BOFT; a strength goes into each stage."""
    blocks = tensors["oft_blocks"]
    constraint = float(tensors["alpha"]) * base.shape[0] if "alpha" in tensors else 0.0
    identity = torch.eye(blocks.shape[-1])
    rotations = torch.lerp(identity.expand(blocks.shape), _cayley(blocks, identity, constraint), strength)
    rotated, rows = base.flatten(1), base.shape[0]
    if blocks.ndim == 3:
        # LyCORIS multiplies from the left with the transposed blocks here, and as they are in BOFT
        rotated = rotations.mT @ rotated.reshape(blocks.shape[0], blocks.shape[-1], -1)
    else:
        for stage, rotation in enumerate(rotations):
            rotated = _rotate_stage(rotated, rotation, 2**stage * blocks.shape[-1] // 2)
    rotated = rotated.reshape(rows, -1)
    if "rescale" in tensors:
        factor = 1 + strength * (tensors["rescale"].reshape(rows, 1) - 1)
        rotated = rotated * factor
    return rotated.reshape(base.shape)


def _cayley(blocks: Tensor, identity: Tensor, constraint: float) -> Tensor:
    """Return the rotations (I + Q)(I − Q)⁻¹ of the skew parts Q of blocks, shortened to the constraint if it is set."""
    skew = blocks - blocks.mT
    length = skew.square().sum().sqrt() + 1e-8
    if 0 < constraint < length:
        skew = skew * constraint / length
    return (identity + skew) @ cast("Tensor", cast("Any", torch.linalg).inv(identity - skew))


def _rotate_stage(rows: Tensor, rotation: Tensor, half: int) -> Tensor:
    """Apply one stage of a butterfly: blocks of rows from two halves, `half` rows each."""
    size, width = rotation.shape[-1], rows.shape[1]
    mixed = rows.reshape(-1, 2, half, width).transpose(1, 2).reshape(-1, size, width)
    mixed = torch.einsum("bij,bjk->bik", rotation, mixed)
    return mixed.reshape(-1, half, 2, width).transpose(1, 2).reshape(-1, width)
