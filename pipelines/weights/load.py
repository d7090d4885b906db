"""Load a checkpoint from disk onto a device: strictly, offline, and without needless copies.

Tensors are memory-mapped from safetensors files and assigned to empty networks; only another dtype or device
makes a copy.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from pipelines.errors import WeightsError
from pipelines.types import AttentionBackend, PredictionType
from pipelines.weights.architecture import Architecture
from pipelines.weights.checkpoint import (
    TEXT_ENCODER_FOLDERS,
    UNET_PREFIX,
    VAE_PREFIX,
    Checkpoint,
    checkpoint_files,
    open_checkpoint,
    read_ahead,
)
from pipelines.weights.detect import Detection, detect, detect_inpainting
from pipelines.weights.embedded import choose_architecture
from pipelines.weights.key_map import (
    OLD_ATTENTION,
    MappedKey,
    map_text_keys,
    map_unet_keys,
    map_vae_keys,
    text_prefix,
)
from pipelines.weights.networks import TextEncoder, UNet, Vae, build_networks, load_state, set_attention

FLOAT32_LIMIT = 1 << 30
"""Bytes of a checkpoint below which a CPU runs it in float32."""
SD1_TEXT, LEAKED_SD1_TEXT = "cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."
"""Prefix of Stable Diffusion 1's text encoder, and the one in the weights of NovelAI that leaked in 2022."""
IGNORED_KEY = re.compile(
    r"position_ids$|logit_scale$|^model_ema\.|^denoiser\.|^v_pred$|^ztsnr$|^edm_vpred\.|^betas$|^alphas|^sqrt_"
    r"|^(conditioner\.embedders\.0|cond_stage_model)\..*text_projection|^log_one_minus|^posterior_|^lvlb_|^conditioner\.embedders\.[2-9]"
)
"""Tensors that checkpoints contain and no network needs."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A model's networks, ready to run."""

    detection: Detection
    architecture: Architecture
    unet: UNet
    vae: Vae
    text_encoders: tuple[TextEncoder, ...]
    device: torch.device
    dtype: torch.dtype  # of the UNets and the text encoders
    vae_dtype: torch.dtype
    inpainting: UNet | None = None  # a second UNet, with 9 input channels


def load_weights(
    path: Path | str,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    vae_dtype: torch.dtype | None = None,
    prediction: PredictionType | None = None,
    zsnr: bool | None = None,
    vae: Path | None = None,
    text_encoders: tuple[Path, ...] = (),
    inpainting: Path | None = None,
    attention: AttentionBackend = "sdpa",
) -> Weights:
    """Load a model.

    Args:
        dtype: None chooses by device and size (see `choose_dtype`).
        prediction, zsnr: override what the file indicates.
        vae: a file whose VAE replaces the checkpoint's.
        text_encoders: replacements likewise: one file that contains them all, or one for each, CLIP-L first.
        inpainting: a file whose UNet, with 9 input channels, is used for inpainting; the rest of it is ignored.

    Raises:
        WeightsError: the checkpoint or a replacement cannot be used; one line with file and reason.
        PipelineError: the attention backend is not installed.
    """
    checkpoint, target = open_checkpoint(Path(path)), torch.device(device)
    detection = detect(checkpoint.path, prediction, zsnr)
    architecture = choose_architecture(checkpoint, detection.family, detection.channels)
    unet, vae_network, encoders = build_networks(architecture)
    encoder_modules = [encoder.module for encoder in encoders]
    parts = model_parts(architecture, unet.module, vae_network.module, encoder_modules)
    load_parts(checkpoint, parts, _assign_replacements(checkpoint, parts, vae, text_encoders))
    dtype = dtype or choose_dtype(checkpoint, target)
    vae_dtype = vae_dtype or choose_vae_dtype(dtype, target)
    if target.type == "cuda":
        for file in checkpoint_files(checkpoint):
            read_ahead(file)
    for part in parts:
        # not diffusers' own `to`, which logs advice about loaders that are not used here
        nn.Module.to(part.module, target, vae_dtype if part.folder == "vae" else dtype)
    set_attention(unet, attention)
    weights = Weights(detection, architecture, unet, vae_network, encoders, target, dtype, vae_dtype)
    return weights if inpainting is None else _add_inpainting_unet(weights, inpainting, attention)


def _add_inpainting_unet(weights: Weights, path: Path, attention: AttentionBackend) -> Weights:
    checkpoint, detection = open_checkpoint(path), detect_inpainting(path, weights.detection)
    architecture = choose_architecture(checkpoint, detection.family, detection.channels)
    unet, vae, encoders = build_networks(architecture)
    part = model_parts(architecture, unet.module, vae.module, [encoder.module for encoder in encoders])[0]
    load_state(part.module, _read_tensors(checkpoint, part, _find_tensors(checkpoint, part)))
    nn.Module.to(unet.module, weights.device, weights.dtype)
    set_attention(unet, attention)
    return replace(weights, inpainting=unet)


def _assign_replacements(
    checkpoint: Checkpoint, parts: Sequence["ModelPart"], vae: Path | None, text_encoders: tuple[Path, ...]
) -> dict[str, Path]:
    """The files that replace parts of the checkpoint, by the parts' folders."""
    folders = [part.folder for part in parts if part.folder in TEXT_ENCODER_FOLDERS]
    files = text_encoders * len(folders) if len(text_encoders) == 1 else text_encoders
    if files and len(files) != len(folders):
        reason = f"{len(files)} text encoders are given, but the model has {len(folders)}"
        raise WeightsError(checkpoint.path, reason)
    return dict(zip(folders, files, strict=False)) | ({} if vae is None else {"vae": vae})


def choose_vae_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return bfloat16 on CUDA or if the other networks have it, else float32: SDXL's VAE overflows in float16."""
    return torch.bfloat16 if device.type == "cuda" or dtype == torch.bfloat16 else torch.float32


def choose_dtype(checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """Return the dtype of the UNet and the text encoders.

    On a GPU float16, or bfloat16 on CUDA if the file has it and no float16. On a CPU float32 for small files, else
    bfloat16.
    """
    stored = {tensor.dtype for tensor in checkpoint.tensors.values()}
    if device.type == "cuda" and "BF16" in stored and "F16" not in stored:
        return torch.bfloat16
    if device.type != "cpu":
        return torch.float16
    size = sum(file.stat().st_size for file in checkpoint_files(checkpoint))
    return torch.float32 if size < FLOAT32_LIMIT else torch.bfloat16


@dataclass(frozen=True, slots=True)
class ModelPart:
    """A network to fill."""

    folder: str  # in a diffusers layout
    module: nn.Module
    prefix: str  # what its keys begin with in a single file
    keys: Mapping[str, MappedKey]  # where each of its weights is in a single file


def model_parts(
    architecture: Architecture, unet: nn.Module, vae: nn.Module, text_encoders: Sequence[nn.Module]
) -> tuple[ModelPart, ...]:
    """Return the networks of a model, each with the places of its weights."""
    parts = [
        ModelPart("unet", unet, UNET_PREFIX, map_unet_keys(unet.state_dict(), architecture.unet)),
        ModelPart("vae", vae, VAE_PREFIX, map_vae_keys(vae.state_dict(), architecture.vae)),
    ]
    for number, (folder, module) in enumerate(zip(TEXT_ENCODER_FOLDERS, text_encoders, strict=False)):
        keys = map_text_keys(module.state_dict(), architecture, number)
        parts.append(ModelPart(folder, module, text_prefix(architecture, number), keys))
    return tuple(parts)


def load_parts(checkpoint: Checkpoint, parts: Sequence[ModelPart], replacements: Mapping[str, Path]) -> None:
    """Fill every part, from the checkpoint or from the file that replaces it.

    Raise WeightsError if a weight is missing, has another shape, or belongs to no part.
    """
    used_keys: set[str] = set()
    replaced_prefixes: list[str] = []
    for part in parts:
        source = checkpoint
        if part.folder in replacements:
            source = open_checkpoint(replacements[part.folder])
            replaced_prefixes += [part.prefix, f"{part.folder}."]
        found = _find_tensors(source, part)
        used_keys |= {key for key, _ in found.values()}
        load_state(part.module, _read_tensors(source, part, found))
    extra = [key for key in checkpoint.tensors if key not in used_keys and not IGNORED_KEY.search(key)]
    extra = [key for key in extra if not key.startswith(tuple(replaced_prefixes))]
    if extra:
        reason = f"{_list_keys('unexpected', extra)}; it is of another architecture"
        raise WeightsError(checkpoint.path, reason)


def _find_tensors(source: Checkpoint, part: ModelPart) -> dict[str, tuple[str, MappedKey]]:
    """For each key of the network, the key in the checkpoint and how it is stored there."""
    found: dict[str, tuple[str, MappedKey]] = {}
    absent: list[str] = []
    for name, mapped in part.keys.items():
        spellings = _spell_key(part, name, mapped)
        match = next(((key, stored) for key, stored in spellings if key in source.tensors), None)
        if match is None:
            absent.append(mapped.key if source.layout == "single" else f"{part.folder}.{name}")
        else:
            found[name] = match
    if not found:
        reason = f"it contains no {part.folder}; name a file that does as its replacement"
        raise WeightsError(source.path, reason)
    if absent:
        raise WeightsError(source.path, _list_keys("missing", absent))
    return found


def _spell_key(part: ModelPart, name: str, mapped: MappedKey) -> Iterator[tuple[str, MappedKey]]:
    """The keys one weight may have: in a single file, in a file of that part alone, in a diffusers folder."""
    yield mapped.key, mapped
    yield mapped.key.removeprefix(part.prefix), mapped
    yield mapped.key.replace(SD1_TEXT, LEAKED_SD1_TEXT), mapped
    bare = name.removeprefix("text_model.")
    old_attention = name
    for new, old in OLD_ATTENTION.items():
        old_attention = old_attention.replace(new, old)
    for spelling in dict.fromkeys((name, bare, f"text_model.{bare}", old_attention)):
        yield f"{part.folder}.{spelling}", MappedKey(spelling, "conv" if mapped.storage == "conv" else "same")
        yield spelling, MappedKey(spelling)


def _read_tensors(
    source: Checkpoint, part: ModelPart, found: Mapping[str, tuple[str, MappedKey]]
) -> dict[str, Tensor]:
    """The tensors of a part, as views of the memory-mapped files."""
    shapes = {name: tensor.shape for name, tensor in part.module.state_dict().items()}
    tensors: dict[str, Tensor] = {}
    with ExitStack() as stack:
        files: dict[Path, Any] = {
            file: stack.enter_context(cast("Any", safe_open)(file, framework="pt"))
            for file in dict.fromkeys(source.tensors[key].file for key, _ in found.values())
        }
        for name, (key, mapped) in found.items():
            ref = source.tensors[key]
            tensor = mapped.to_model(files[ref.file].get_tensor(ref.key))
            if tensor.shape != shapes[name]:
                difference = f"{tuple(tensor.shape)}, not {tuple(shapes[name])}"
                reason = f"{key} has the shape {difference}; it is of another architecture"
                raise WeightsError(source.path, reason)
            tensors[name] = tensor
    return tensors


def _list_keys(what: str, keys: Sequence[str]) -> str:
    first = ", ".join(sorted(keys)[:3])
    return f"{len(keys)} {what} ({first}{', ...' if len(keys) > 3 else ''})"
