"""The names under which files of every origin keep the weights of a network, and keys that no network needs.

A naming is one such table, for one prefix. The one under which a file has the most weights is the file's.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from pipelines.weights.architecture import Architecture, Config
from pipelines.weights.checkpoint import UNET_PREFIX, VAE_PREFIX
from pipelines.weights.key_map import (
    OLD_ATTENTION,
    MappedKey,
    map_openclip_keys,
    map_unet_keys,
    map_vae_keys,
)

CLIP_L_PREFIXES = (
    "conditioner.embedders.0.", "cond_stage_model.", "text_encoder.", "text_encoders.clip_l.",
    "cond_stage_model.clip_l.", "clip_l.", "te1.", "te.",
)  # fmt: skip
CLIP_G_PREFIXES = (
    "conditioner.embedders.1.", "text_encoder_2.", "text_encoders.clip_g.", "cond_stage_model.clip_g.",
    "clip_g.", "te2.",
)  # fmt: skip
PREFIXES: Mapping[str, tuple[str, ...]] = {
    "unet": (UNET_PREFIX, "unet."),
    "vae": (VAE_PREFIX, "vae."),
    "text_encoder": CLIP_L_PREFIXES,
    "text_encoder_2": CLIP_G_PREFIXES,
}
"""What the keys of each component, under its folder's name, begin with in files of more than one."""
FOLDERS = {prefix: folder for folder, prefixes in PREFIXES.items() for prefix in prefixes}
ANY_PREFIX = re.compile("|".join(re.escape(prefix) for prefix in sorted(FOLDERS, key=len, reverse=True)))
LEVELS = ("transformer.text_model.", "text_model.", "transformer.", "", "model.")
"""What follows the prefix of a text encoder. Stable Diffusion 1 in 2022 had `transformer.` alone."""
PROJECTION = "text_projection"
IGNORED_KEY = re.compile(
    # of trainers: schedules, averaged copies, losses and counters
    r"^(betas|alphas|sqrt_|log_one_minus|posterior_|lvlb_|logvar$|scale_factor$|denoiser\.)"
    r"|^((first_stage_model|vae)\.)?(model_ema|loss|discriminator)\."
    r"|(^|\.)(global_step|num_updates|decay|epoch|iteration|step)$"
    # of CLIP: buffers, and what encodes images
    r"|(^|\.)(position_ids|logit_scale|attn_mask|input_resolution|context_length|vocab_size)$"
    r"|(^|\.)(vision_model|visual|visual_projection)\.|^conditioner\.embedders\.[2-9]"
    # markers, and scales for networks that also compute in 8 bits
    r"|^(v_pred|ztsnr)$|^edm_vpred\.|(^|\.)(scaled_fp8|scale_input|input_scale|comfy_quant)$"
    # whole models of other kinds
    r"|^(safety_checker|control_model)\.|^lora_(unet|te\d?)_|\.(lora_(up|down|mid|A|B)(\.\w+)*|(hada|lokr)_\w+|dora_scale|alpha)$"
)
"""Tensors that checkpoints contain and no network needs."""
SPARE_PROJECTION = re.compile(r"(^|\.)text_projection(\.\w+)*$")
"""A text encoder's projection, if it is not used: that of SDXL's first encoder, or a second copy."""


@dataclass(frozen=True, slots=True)
class Naming:
    """One way to name a network's weights; each has one key, or some that mean the same."""

    prefix: str
    keys: Mapping[str, tuple[MappedKey, ...]]

    def find(self, name: str, present: Mapping[str, object]) -> MappedKey | None:
        """Return where a weight is among the keys that are present, or None."""
        return next((mapped for mapped in self.keys[name] if mapped.key in present), None)

    def count(self, present: Mapping[str, object]) -> int:
        """Return how many of the weights are among the keys that are present."""
        return sum(self.find(name, present) is not None for name in self.keys)


def find_component(key: str) -> str | None:
    """Return the folder of the component that a key's prefix names, or None."""
    match = ANY_PREFIX.match(key)
    return None if match is None else FOLDERS[match[0]]


def name_unet(names: Iterable[str], config: Config) -> Iterator[Naming]:
    """Yield the namings of a UNet: of single files and of diffusers, each with every prefix or none."""
    original = {name: mapped.key for name, mapped in map_unet_keys(names, config).items()}
    tables = [
        {name: key.removeprefix(UNET_PREFIX) for name, key in original.items()},
        {name: name for name in original},
    ]
    for prefix, table in product((*PREFIXES["unet"], ""), tables):
        yield Naming(prefix, {name: (MappedKey(prefix + key),) for name, key in table.items()})


def name_vae(names: Iterable[str], config: Config) -> Iterator[Naming]:
    """Yield the namings of a VAE; diffusers had other names for its attention until 2023."""
    original = map_vae_keys(names, config)
    for prefix in (*PREFIXES["vae"], ""):
        keys = {
            name: (MappedKey(prefix + mapped.key.removeprefix(VAE_PREFIX), mapped.storage),)
            for name, mapped in original.items()
        }
        diffusers = {
            name: tuple(MappedKey(prefix + spelling, mapped.storage) for spelling in _spell_attention(name))
            for name, mapped in original.items()
        }
        yield Naming(prefix, keys)
        yield Naming(prefix, diffusers)


def _spell_attention(name: str) -> tuple[str, ...]:
    old = name
    for new_part, old_part in OLD_ATTENTION.items():
        old = old.replace(new_part, old_part)
    return tuple(dict.fromkeys((name, old)))


def name_text_encoder(names: Iterable[str], architecture: Architecture, number: int) -> Iterator[Naming]:
    """Yield the namings of text encoder `number`: those of transformers, and those of OpenAI and OpenCLIP."""
    names = tuple(names)
    weights = [name for name in names if not name.startswith(PROJECTION)]
    openclip = map_openclip_keys(weights, "")
    tables = ({name: MappedKey(name.removeprefix("text_model.")) for name in weights}, openclip)
    prefixes = CLIP_G_PREFIXES if architecture.text_encoders[number].layout == "openclip" else CLIP_L_PREFIXES
    for prefix, level, table in product((*prefixes, ""), LEVELS, tables):
        keys = {name: (_prefix_key(prefix + level, mapped),) for name, mapped in table.items()}
        projections = tuple(_spell_projection(prefix, level))
        yield Naming(prefix, keys | {name: projections for name in names if name not in keys})


def _prefix_key(prefix: str, mapped: MappedKey) -> MappedKey:
    return MappedKey(prefix + mapped.key, mapped.storage, mapped.part)


def _spell_projection(prefix: str, level: str) -> Iterator[MappedKey]:
    """CLIP's own parameter is the transpose of the linear layer that it is in transformers.

    In one version of ComfyUI there are both.
    """
    places = dict.fromkeys((prefix + level, prefix + level.removesuffix("text_model."), prefix))
    for place in places:
        yield MappedKey(f"{place}{PROJECTION}", "transposed")
    for place in (*places, f"{prefix}{level}transformer."):
        yield MappedKey(f"{place}{PROJECTION}.weight")
