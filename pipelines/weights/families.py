"""The model families that can run, one record for each: all that differs between them, except network shapes.

No other module branches on a family's name. A new family is an entry in FAMILIES and a function in architecture.py
whose Architecture has its name, even if the shapes are not new.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipelines.errors import WeightsError
from pipelines.types import Family
from pipelines.weights.architecture import Architecture, sd15, sdxl
from pipelines.weights.checkpoint import UNET_PREFIX, Checkpoint


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """What the other modules need to know about one family."""

    name: Family  # the key in FAMILIES, in profiles and in metadata
    title: str  # the name in messages
    architecture: Callable[[int], Architecture]  # from the number of input channels, 4 or 9
    matches: Callable[[Checkpoint], bool]  # raises WeightsError for a similar UNet that cannot run
    evidence: str  # the property that `matches` looks for
    text_width: int  # of the prompt embeddings
    text_prefixes: tuple[str, ...]  # what the keys of each text encoder begin with in a single file
    takes_size_ids: bool  # whether the UNet takes the original size, the crop and the target size
    takes_clip_skip: bool  # whether users choose the text encoder's layer
    v_implies_zsnr: bool  # whether v-prediction implies zero terminal SNR unless something says otherwise
    inpainting_architecture: str | None  # `modelspec.architecture` of a merged model; None: cannot be merged


def _unet_keys(single: str, diffusers: str) -> tuple[str, ...]:
    """The keys of a UNet's weight: in a single file, in a diffusers folder, and in a file of a UNet alone."""
    return UNET_PREFIX + single, f"unet.{diffusers}", single, diffusers


CONV_IN_KEYS = _unet_keys("input_blocks.0.0.weight", "conv_in.weight")
CONV_OUT_KEYS = _unet_keys("out.2.weight", "conv_out.weight")
FIRST_LEVEL_TEXT_KEYS = _unet_keys(
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
)
SECOND_LEVEL_TEXT_KEYS = _unet_keys(
    "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight",
)
SIZE_ID_KEYS = _unet_keys("label_emb.0.0.weight", "add_embedding.linear_1.weight")
TENTH_MIDDLE_BLOCK = ("middle_block.1.transformer_blocks.9.", "mid_block.attentions.0.transformer_blocks.9.")


def _find_width(checkpoint: Checkpoint, keys: tuple[str, ...], axis: int = -1) -> int | None:
    """The width of a weight along an axis, None without the weight; raises WeightsError if it is not a matrix."""
    tensor = checkpoint.find(keys)
    if tensor is None:
        return None
    if len(tensor.shape) < 2:
        reason = f"{tensor.key} has the shape {tensor.shape}, too few dimensions; it is damaged"
        raise WeightsError(checkpoint.path, reason)
    return tensor.shape[axis]


def _is_sd15(checkpoint: Checkpoint) -> bool:
    width = _find_width(checkpoint, FIRST_LEVEL_TEXT_KEYS)
    if width not in (None, 768):
        reason = f"Stable Diffusion 2 (text width {width}), which is not supported"
        raise WeightsError(checkpoint.path, reason)
    return width == 768


def _is_sdxl(checkpoint: Checkpoint) -> bool:
    if _find_width(checkpoint, CONV_IN_KEYS, axis=0) == 384:
        reason = "the SDXL refiner, which generates nothing alone and is not supported"
        raise WeightsError(checkpoint.path, reason)
    if _find_width(checkpoint, SECOND_LEVEL_TEXT_KEYS) != 2048:
        return False
    size_ids = _find_width(checkpoint, SIZE_ID_KEYS)
    if size_ids not in (None, 2816):
        raise WeightsError(checkpoint.path, f"like SDXL, but with size ids of width {size_ids}, not 2816")
    if not any(part in key for key in checkpoint.tensors for part in TENTH_MIDDLE_BLOCK):
        raise WeightsError(checkpoint.path, "a cut-down SDXL (SSD-1B or Vega), which is not supported")
    return True


FAMILIES: Mapping[Family, ModelFamily] = {
    family.name: family
    for family in (
        # matched in this order: a UNet with cross-attention at its first level is never SDXL's
        ModelFamily(
            name="sd15",
            title="Stable Diffusion 1",
            architecture=sd15,
            matches=_is_sd15,
            evidence="text of width 768 at the first level",
            text_width=768,
            text_prefixes=("cond_stage_model.",),
            takes_size_ids=False,
            takes_clip_skip=True,
            v_implies_zsnr=False,
            inpainting_architecture=None,
        ),
        ModelFamily(
            name="sdxl",
            title="SDXL",
            architecture=sdxl,
            matches=_is_sdxl,
            evidence="text of width 2048 at the second level",
            text_width=2048,
            text_prefixes=("conditioner.embedders.0.", "conditioner.embedders.1."),
            takes_size_ids=True,
            takes_clip_skip=False,
            v_implies_zsnr=True,
            # spelled like SwarmUI's `stable-diffusion-v1/inpaint`; ModelSpec lists no such architecture for SDXL
            inpainting_architecture="stable-diffusion-xl-v1-base/inpaint",
        ),
    )
}
