"""Parses the keys of LoRA files, as every trainer writes them.

A key is a prefix for the network, the path of a layer, and a suffix for the tensor's role. kohya joins the path by
underscores, diffusers and peft by dots, and both UNet layouts occur in both, so paths are compared with underscores.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipelines.weights.checkpoint import UNET_PREFIX
from pipelines.weights.key_map import MappedKey

PREFIXES: Mapping[str, str] = {
    **dict.fromkeys(
        ("lora_unet_", "lora_unet.", "lycoris_", "unet.", UNET_PREFIX, "diffusion_model."), "unet"
    ),
    **dict.fromkeys(("lora_te1_", "lora_te_", "text_encoder.", "clip_l.", "te1."), "text_encoder"),
    **dict.fromkeys(("lora_te2_", "text_encoder_2.", "clip_g.", "te2."), "text_encoder_2"),
}
"""Prefixes of keys, and the network's folder in a diffusers layout."""
NETWORK = re.compile("|".join(re.escape(prefix) for prefix in sorted(PREFIXES, key=len, reverse=True)))
WRAPPER = "base_model.model."
"""Prefix that peft puts before all others."""
END = r"(\.default)?(\.weight)?$"
ROLES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), role)
    for pattern, role in (
        (rf"\.lora_(down|A|linear_layer\.down){END}", "down"),
        (rf"\.lora_(up|B|linear_layer\.up){END}", "up"),
        (r"[._]lora\.down\.weight$", "down"),
        (r"[._]lora\.up\.weight$", "up"),
        (r"\.lora_mid\.weight$", "mid"),
        (rf"\.(dora_scale$|lora_magnitude_vector{END})", "dora_scale"),
        (r"\.(alpha|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](_[ab])?|lokr_t2)$", ""),
        (r"\.(diff|diff_b|w_norm|b_norm|on_input|oft_blocks|rescale|oft_diag|lambda_layer)$", ""),
        (r"\.(a1|a2|b1|b2|bm1|bm2|q_layer|p_layer)\.weight$", ""),
        (r"\.weight$", "weight"),
    )
)
"""Suffixes and what they hold; an empty role is the suffix itself."""
PROCESSOR = re.compile(r"[._]processor(?=[._])")
OLD_TEXT_LAYERS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
"""Layers of a text encoder's attention in diffusers' first LoRA files."""


@dataclass(frozen=True, slots=True)
class LoraKey:
    """A parsed key: the network's folder, the layer's path with underscores, and the tensor's role."""

    folder: str
    layer: str
    role: str


def parse_key(key: str) -> LoraKey | None:
    """Parse a key; None if its suffix is unknown."""
    for pattern, role in ROLES:
        match = pattern.search(key)
        if match is not None:
            folder, path = _split_network(key[: match.start()].removeprefix(WRAPPER))
            suffix = match[0].removeprefix(".").removesuffix(".weight")
            return LoraKey(folder, path, role or suffix)
    return None


def _split_network(path: str) -> tuple[str, str]:
    """Split a path into the network's folder and the rest with underscores; without a prefix it is the UNet's."""
    match = NETWORK.match(path)
    folder = "unet" if match is None else PREFIXES[match[0]]
    rest = path if match is None else path[match.end() :]
    layer = PROCESSOR.sub("", rest).replace(".", "_")
    if folder == "unet":
        return folder, layer
    layer = layer.removeprefix("text_model_")
    stem, _, last = layer.rpartition("_self_attn_")
    return folder, f"{stem}_self_attn_{OLD_TEXT_LAYERS[last]}" if last in OLD_TEXT_LAYERS else layer


def name_layers(folder: str, names: Iterable[str], keys: Mapping[str, MappedKey]) -> dict[str, str]:
    """Map every name that files have for a layer of a network, with underscores, to its own name.

    Args:
        names: the network's weights.
        keys: their keys in a single file, which kohya's files for SDXL use.
    """
    layers: dict[str, str] = {}
    for name in names:
        layer = name.rpartition(".")[0]
        spellings = {layer.removeprefix("text_model."), layer.removesuffix(".0")}
        if folder == "unet":
            spellings.add(keys[name].key.removeprefix(UNET_PREFIX).rpartition(".")[0])
        for spelling in spellings:
            layers.setdefault(spelling.replace(".", "_"), layer)
    return layers
