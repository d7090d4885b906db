"""The kinds of changes in LoRA files: which tensors each consists of, and which weights they fit.

Shapes are those of a matrix: convolutions count with all but their first dimension flattened. Needs no torch; the
mathematics is in lora_changes.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of a layer's tensors by their roles."""
Matrix = tuple[int, int]


@dataclass(frozen=True, slots=True)
class LoraKind:
    """One kind of change to one weight.

    Attributes:
        needs: sets of roles, each of which is enough; the tensors of one that has a rank are scaled by alpha / rank.
        optional: further roles that it reads.
        fits: whether tensors of these shapes change a weight of this shape.
        changes_bias: whether it changes the layer's bias instead of its weight.
        refused: why it is not supported.
    """

    name: str
    needs: tuple[frozenset[str], ...]
    fits: Callable[[Shapes, tuple[int, ...]], bool]
    optional: frozenset[str] = frozenset()
    changes_bias: bool = False
    refused: str | None = None

    def matches(self, roles: frozenset[str]) -> bool:
        """Whether a layer with tensors of these roles has a change of this kind."""
        return any(needed <= roles for needed in self.needs)

    def uses(self, roles: frozenset[str]) -> frozenset[str]:
        """Return those of the roles that the change reads."""
        needed = next(needed for needed in self.needs if needed <= roles)
        return needed | (self.optional & roles)


def flatten(shape: tuple[int, ...]) -> Matrix:
    """Return the shape of a weight as a matrix."""
    return shape[0], prod(shape[1:])


def _fits_lora(shapes: Shapes, weight: tuple[int, ...]) -> bool:
    up, down, mid = shapes["up"], shapes["down"], shapes.get("mid")
    if len(up) < 2 or len(down) < 2 or prod(up[2:]) != 1:
        return False
    if mid is None:
        return up[1] == down[0] and (up[0], prod(down[1:])) == flatten(weight)
    is_chain = len(mid) > 2 and (up[1], down[0]) == mid[:2]
    return is_chain and prod(down[2:]) == 1 and (up[0], down[1] * prod(mid[2:])) == flatten(weight)


def _fits_loha(shapes: Shapes, weight: tuple[int, ...]) -> bool:
    sides = [_product_shape(shapes, f"hada_w{side}", f"hada_t{side}") for side in (1, 2)]
    return ("hada_t1" in shapes) == ("hada_t2" in shapes) and sides == [flatten(weight)] * 2


def _fits_lokr(shapes: Shapes, weight: tuple[int, ...]) -> bool:
    first, second = (_product_shape(shapes, f"lokr_w{side}", f"lokr_t{side}") for side in (1, 2))
    if first is None or second is None:
        return False
    return (first[0] * second[0], first[1] * second[1]) == flatten(weight)


def _product_shape(shapes: Shapes, full: str, core: str) -> Matrix | None:
    """Return the shape of a matrix: given as it is, as a product of two, or as a Tucker core between two."""
    if full in shapes:
        return flatten(shapes[full]) if shapes[full] else None
    left, right, inner = shapes[f"{full}_a"], shapes[f"{full}_b"], shapes.get(core)
    if len(left) != 2 or len(right) < 2:
        return None
    if inner is None:
        return (left[0], prod(right[1:])) if left[1] == right[0] else None
    if len(inner) < 3 or inner[:2] != (left[0], right[0]):
        return None
    return left[1], right[1] * prod(inner[2:])


def _fits_difference(role: str) -> Callable[[Shapes, tuple[int, ...]], bool]:
    def fits(shapes: Shapes, weight: tuple[int, ...]) -> bool:
        return bool(shapes[role]) and flatten(shapes[role]) == flatten(weight)

    return fits


def _fits_ia3(shapes: Shapes, weight: tuple[int, ...]) -> bool:
    return len(weight) > 1 and prod(shapes["on_input"]) == 1 and prod(shapes["weight"]) in weight[:2]


def _fits_oft(shapes: Shapes, weight: tuple[int, ...]) -> bool:
    blocks, rescale = shapes["oft_blocks"], shapes.get("rescale")
    is_square = len(blocks) in (3, 4) and blocks[-1] == blocks[-2]
    if not is_square or blocks[-3] * blocks[-1] != weight[0]:
        return False
    # stage i of the butterfly mixes halves of blocks 2**i apart
    is_butterfly = len(blocks) == 3 or weight[0] % (2 ** (blocks[0] - 1) * blocks[-1]) == 0
    return is_butterfly and (rescale is None or prod(rescale) == weight[0])


def _fits_nothing(_shapes: Shapes, _weight: tuple[int, ...]) -> bool:
    return False


def _refuse(name: str, role: str, reason: str) -> LoraKind:
    return LoraKind(name, (frozenset({role}),), _fits_nothing, refused=reason)


def _roles(*names: str) -> frozenset[str]:
    return frozenset(names)


ADVICE = "which is not supported; convert it to a LoRA"
LOKR = tuple(
    _roles(*first, *second)
    for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
    for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
)
DECOMPOSED = _roles("alpha", "dora_scale")
KINDS = (
    LoraKind("LoRA", (_roles("down", "up"),), _fits_lora, _roles("mid") | DECOMPOSED),
    LoraKind(
        "LoHa",
        (_roles("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),),
        _fits_loha,
        _roles("hada_t1", "hada_t2") | DECOMPOSED,
    ),
    LoraKind("LoKr", LOKR, _fits_lokr, _roles("lokr_t2") | DECOMPOSED),
    LoraKind("full difference", (_roles("diff"),), _fits_difference("diff"), _roles("dora_scale")),
    LoraKind("bias difference", (_roles("diff_b"),), _fits_difference("diff_b"), changes_bias=True),
    LoraKind("norm", (_roles("w_norm"),), _fits_difference("w_norm")),
    LoraKind("norm bias", (_roles("b_norm"),), _fits_difference("b_norm"), changes_bias=True),
    LoraKind("IA3", (_roles("weight", "on_input"),), _fits_ia3),
    LoraKind("OFT", (_roles("oft_blocks"),), _fits_oft, _roles("alpha", "rescale")),
    _refuse("GLoRA", "a1", f"a GLoRA, {ADVICE}"),
    _refuse("T-LoRA", "lambda_layer", f"a T-LoRA, {ADVICE}"),
    _refuse("OFT", "oft_diag", f"an OFT of an old version of LyCORIS, {ADVICE}"),
)
"""All kinds. The tensors of one layer may be of several, which then change its weight and its bias."""


def rank_of(kind: str, shapes: Shapes) -> int | None:
    """Return the rank that alpha is divided by, or None for a change that is not scaled."""
    if kind == "LoRA":
        return shapes["down"][0]
    if kind == "LoHa":
        return shapes["hada_w1_b"][0]
    if kind == "LoKr":
        # both names of the second factor first: it is the larger one, whose rank the trainer was given
        return next((shapes[role][0] for role in ("lokr_w2_b", "lokr_w1_b") if role in shapes), None)
    return None
