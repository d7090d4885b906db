"""The shape of a VAE, read from the config under which diffusers publishes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from pipelines.weights.architecture import Config


@dataclass(frozen=True, slots=True)
class VaeShape:
    """All sizes of a VAE.

    Attributes:
        inputs, outputs: channels of the images that it encodes and decodes.
        latents: channels of its latents.
        widths: channels of the features of each level, from the full resolution down, each at half the height and
            width of the one before.
        resnets: residual blocks of a level in the encoder; in the decoder there is one more.
        groups: of all group normalizations.
    """

    inputs: int
    outputs: int
    latents: int
    widths: tuple[int, ...]
    resnets: int
    groups: int


def read_vae_shape(config: Config) -> VaeShape:
    """Return the shape that a config of diffusers' AutoencoderKL describes.

    Raise ValueError if its lists are not of the same length.
    """
    lists = [config[key] for key in ("block_out_channels", "down_block_types", "up_block_types")]
    widths, *types = (cast("Sequence[object]", value) for value in lists)
    if any(len(each) != len(widths) for each in types):
        raise ValueError("the numbers of block types and of widths differ")
    return VaeShape(
        inputs=cast("int", config["in_channels"]),
        outputs=cast("int", config["out_channels"]),
        latents=cast("int", config["latent_channels"]),
        widths=tuple(cast("Sequence[int]", widths)),
        resnets=cast("int", config["layers_per_block"]),
        groups=cast("int", config["norm_num_groups"]),
    )
