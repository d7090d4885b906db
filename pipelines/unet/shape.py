"""The shape of a UNet, read from the config under which diffusers publishes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from pipelines.weights.architecture import Config


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of a UNet.

    Attributes:
        width: channels of its features.
        heads: attention heads of its transformers.
        depth: blocks in each of its transformers; 0 without any.
    """

    width: int
    heads: int
    depth: int


@dataclass(frozen=True, slots=True)
class UNetShape:
    """All sizes of a UNet.

    Attributes:
        levels: from the full resolution down, each at half the height and width of the one before.
        middle: of the middle block, which has the lowest level's resolution.
        resnets: residual blocks of a level on the way down; on the way up there is one more.
        context: width of the prompt embeddings.
        groups: of all group normalizations.
        linear: whether transformers begin and end with linear layers, or with 1x1 convolutions.
        size_width: width of each size id's sinusoids, and
        added: width of the pooled prompt embeddings and all size ids together; both None for networks without them.
    """

    channels: int
    levels: tuple[Level, ...]
    middle: Level
    resnets: int
    context: int
    groups: int
    eps: float
    linear: bool
    size_width: int | None
    added: int | None

    @property
    def embedding(self) -> int:
        """Width of the embedding of time, sizes and pooled prompt."""
        return 4 * self.levels[0].width


def read_shape(config: Config) -> UNetShape:
    """Return the shape that a config of diffusers' UNet2DConditionModel describes."""
    widths = cast("Sequence[int]", config["block_out_channels"])
    types = cast("Sequence[str]", config["down_block_types"])
    heads = _spread(config["attention_head_dim"], len(widths))  # diffusers' name for the numbers of heads
    depths = _spread(config["transformer_layers_per_block"], len(widths))
    levels = tuple(
        Level(width, count, depth if kind.startswith("CrossAttn") else 0)
        for width, kind, count, depth in zip(widths, types, heads, depths, strict=True)
    )
    has_sizes = config["addition_embed_type"] is not None
    return UNetShape(
        channels=cast("int", config["in_channels"]),
        levels=levels,
        middle=Level(widths[-1], heads[-1], depths[-1]),
        resnets=cast("int", config["layers_per_block"]),
        context=cast("int", config["cross_attention_dim"]),
        groups=cast("int", config["norm_num_groups"]),
        eps=cast("float", config["norm_eps"]),
        linear=cast("bool", config["use_linear_projection"]),
        size_width=cast("int", config["addition_time_embed_dim"]) if has_sizes else None,
        added=cast("int", config["projection_class_embeddings_input_dim"]) if has_sizes else None,
    )


def _spread(value: object, count: int) -> Sequence[int]:
    """Return a number for each level; one number is for all of them."""
    return [value] * count if isinstance(value, int) else cast("Sequence[int]", value)
