"""What a ControlNet file is, known from its header: its family, its layout and its kind. Needs no torch.

Two layouts are read: diffusers' (a folder with a config.json, or its weights alone) and that of the original
repository, `control_model.*`. Union networks have several control types in one; other ControlNets have one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pipelines.errors import WeightsError, abbreviate
from pipelines.types import Family
from pipelines.weights.architecture import Config
from pipelines.weights.checkpoint import Checkpoint, component_files, open_checkpoint
from pipelines.weights.config_file import read_config
from pipelines.weights.detect import LORA_KEY
from pipelines.weights.embedded import read_embedded
from pipelines.weights.families import CONV_IN_KEYS, CONV_OUT_KEYS, FAMILIES
from pipelines.weights.header import read_header
from pipelines.weights.other_kinds import describe_other_kind
from pipelines.weights.quantization import refuse_quantized

Layout = Literal["diffusers", "original"]

ORIGINAL_PREFIX = "control_model."
"""What the keys of most files in the original layout begin with."""
HINT_KEYS = {"diffusers": "controlnet_cond_embedding.conv_in.weight", "original": "input_hint_block.0.weight"}
"""The first convolution of what encodes the control map, in each layout."""
HINTS: Mapping[Layout, tuple[str, ...]] = {
    "diffusers": (
        HINT_KEYS["diffusers"],
        *(f"controlnet_cond_embedding.blocks.{k}.weight" for k in (1, 3, 5)),
    ),
    "original": (HINT_KEYS["original"], *(f"input_hint_block.{k}.weight" for k in (4, 8, 12))),
}
"""That and the three that halve height and width, whose outputs have the network's widths."""
TASKS = "task_embedding"
"""A union network's vectors, one for each control type."""
OTHER_KINDS = (
    (r"^lora_controlnet$", "a Control-LoRA, which changes a copy of the model's own UNet"),
    (r"^(adapter\.)?body\.\d+\.", "a T2I-Adapter"),
    (r"^lllite_", "a ControlNet-LLLite"),
    (r"(^|\.)(control_to_base|base_to_control|ctrl_to_base)", "a ControlNet-XS"),
    (r"(^|\.)(brushnet_|conv_in_condition\.)", "a BrushNet"),
    (r"(^|\.)motion_modules\.", "a SparseCtrl"),
    (r"^difference$", "a ControlNet stored as the difference to another model"),
    (r"^(controlnet_(blocks|x_embedder)|double_blocks|transformer_blocks)\.", "a ControlNet of a transformer (Flux)"),
)  # fmt: skip
"""Keys of what conditions a network in another way, and its name."""
NOT_RUN = "which is not supported; ControlNets of {titles} are"


@dataclass(frozen=True, slots=True)
class ControlFile:
    """A ControlNet's file or folder.

    Attributes:
        family: the one of the models that it is for.
        modes: the number of control types of a union network; None for a network of one.
        source: its tensors, without a prefix.
        layout: how these are named.
        config: what diffusers' class takes besides what the model's UNet has too.
    """

    path: Path
    family: Family
    modes: int | None
    source: Checkpoint
    layout: Layout
    config: Config

    def check_family(self, family: str) -> None:
        """Raise WeightsError if the file is for another family of models."""
        if self.family != family:
            own, title = FAMILIES[self.family].title, FAMILIES[family].title
            reason = f"is a ControlNet for {own}, the model is {title}; choose one for {title}"
            raise WeightsError(self.path, reason)

    def check_mode(self, mode: int | None) -> None:
        """Raise WeightsError unless `mode` is one of a union network's control types, or None for another network."""
        if self.modes is None and mode is not None:
            raise WeightsError(self.path, f"is a ControlNet of one control type; remove the mode {mode}")
        if self.modes is not None and (mode is None or not 0 <= mode < self.modes):
            what = "no mode is given" if mode is None else f"the mode is {mode}"
            reason = f"is a union of {self.modes} control types and {what}; 0 to {self.modes - 1} are allowed"
            raise WeightsError(self.path, reason)


def detect_control(path: Path) -> ControlFile:
    """Read the headers of a ControlNet; raise WeightsError for what is none, or is of a kind that cannot run."""
    source = _open(path)
    layout = _find_layout(source)
    family = _find_family(source)
    union = _read_union(source)
    settings = {"conditioning_embedding_out_channels": _read_hint_widths(source, layout)}
    config = {**settings, **_read_folder_config(path), **union}
    return ControlFile(path, family, union.get("num_control_type"), source, layout, config)


def _open(path: Path) -> Checkpoint:
    """Return the tensors of a file or folder without their prefix, and the metadata also of a folder's file."""
    source = open_checkpoint(path)
    metadata = read_header(component_files(path)[0]).metadata if path.is_dir() else source.metadata
    tensors = {key.removeprefix(ORIGINAL_PREFIX): ref for key, ref in source.tensors.items()}
    return replace(source, tensors=tensors, metadata=metadata)


def _find_layout(source: Checkpoint) -> Layout:
    keys = tuple(source.tensors)
    refuse_quantized(source.path, keys)
    titles = " and ".join(family.title for family in FAMILIES.values())
    for pattern, name in OTHER_KINDS:
        if any(re.search(pattern, key) for key in keys):
            raise WeightsError(source.path, f"{name}, {NOT_RUN.format(titles=titles)}")
    if HINT_KEYS["diffusers"] in source.tensors:
        return "diffusers"
    if HINT_KEYS["original"] in source.tensors:
        return "original"
    raise WeightsError(source.path, f"no ControlNet{_name_other_kind(source)}")


def _name_other_kind(source: Checkpoint) -> str:
    """Return what follows "no ControlNet" in the reason."""
    if any(LORA_KEY.match(key) for key in source.tensors):
        return " but a LoRA"
    if any(key.startswith(("ip_adapter.", "image_proj.")) for key in source.tensors):
        return " but an IP-Adapter; name it as the `vibe` of a model"
    if source.find(CONV_IN_KEYS) is not None and source.find(CONV_OUT_KEYS) is not None:
        return " but a model"
    other = describe_other_kind(source.tensors.values())
    return f": it has neither {' nor '.join(HINT_KEYS.values())}" if other is None else f" but {other}"


def _find_family(source: Checkpoint) -> Family:
    """Return the family whose UNet the network is a copy of."""
    embedded = read_embedded(source)
    if embedded is not None:
        return embedded.family
    for family in FAMILIES.values():
        if family.matches(source):
            return family.name
    titles = " or ".join(family.title for family in FAMILIES.values())
    raise WeightsError(
        source.path, f"a ControlNet that is no copy of the UNet of {titles}, which is not supported"
    )


def _read_hint_widths(source: Checkpoint, layout: Layout) -> tuple[int, ...]:
    """Return the widths of what encodes the control map; raise WeightsError if the network's inputs are others."""
    latents, pixels = _shape(source, CONV_IN_KEYS, 4)[1], _shape(source, HINTS[layout][:1], 4)[1]
    if latents != 4 or pixels != 3:
        reason = f"it takes {latents} latent channels and a map of {pixels}; 4 and a map of 3 are supported"
        raise WeightsError(source.path, reason)
    return tuple(_shape(source, (key,), 4)[0] for key in HINTS[layout])


def _read_union(source: Checkpoint) -> dict[str, int]:
    """Return what the config of a union network has besides; empty for another network."""
    if TASKS not in source.tensors:
        return {}
    modes, width = _shape(source, (TASKS,), 2)
    embedding = _shape(source, ("control_add_embedding.linear_1.weight",), 2)[1]
    layers = {key.split(".")[1] for key in source.tensors if key.startswith("transformer_layes.")}
    if not modes or embedding % modes:
        raise WeightsError(source.path, f"{TASKS} has {modes} control types, which do not divide {embedding}")
    return {
        "num_control_type": modes,
        "num_trans_channel": width,
        "num_trans_layer": len(layers),
        "num_proj_channel": _shape(source, ("spatial_ch_projs.weight",), 2)[0],
        "addition_time_embed_dim": embedding // modes,
    }


def _read_folder_config(path: Path) -> dict[str, object]:
    """Return the settings of a folder that its tensors do not show."""
    if not path.is_dir():
        return {}
    config = read_config(path / "config.json")
    order = config.get("controlnet_conditioning_channel_order", "rgb")
    if order not in ("rgb", "bgr"):
        raise WeightsError(
            path, f"config.json has the channel order {abbreviate(str(order))}; rgb and bgr are known"
        )
    return {
        "controlnet_conditioning_channel_order": order,
        "global_pool_conditions": config.get("global_pool_conditions") is True,
    }


def _shape(source: Checkpoint, keys: tuple[str, ...], dimensions: int) -> tuple[int, ...]:
    ref = source.find(keys)
    if ref is None or len(ref.shape) != dimensions:
        found = "is missing" if ref is None else f"has the shape {abbreviate(str(ref.shape))}"
        raise WeightsError(
            source.path, f"{abbreviate(keys[-1])} {found}, but {dimensions} dimensions are needed"
        )
    return ref.shape
