"""From a checkpoint on disk to networks on a device: strict, offline, and without a copy where none is needed.

Tensors come memory-mapped from safetensors files and are handed to empty networks as they are; only another
dtype or device makes a copy.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from pipelines.errors import WeightsError
from pipelines.types import AttentionBackend, PredictionType
from pipelines.weights.architecture import Architecture, sd15, sdxl
from pipelines.weights.checkpoint import Checkpoint, checkpoint_files, open_checkpoint, read_ahead
from pipelines.weights.detect import Detection, detect, detect_inpainting, embedded_architecture
from pipelines.weights.key_map import (
    OLD_ATTENTION,
    SD1_TEXT,
    UNET,
    VAE,
    MappedKey,
    map_text_keys,
    map_unet_keys,
    map_vae_keys,
    text_prefix,
)
from pipelines.weights.networks import (
    DiffusersUNet,
    TextEncoder,
    UNet,
    Vae,
    build_networks,
    load_state,
    set_attention,
)

LARGE = 1 << 30
LEAKED_TEXT = SD1_TEXT.removesuffix("text_model.")
JUNK = re.compile(
    r"position_ids$|logit_scale$|^model_ema\.|^denoiser\.|^v_pred$|^ztsnr$|^edm_vpred\.|^betas$|^alphas|^sqrt_"
    r"|^(conditioner\.embedders\.0|cond_stage_model)\..*text_projection|^log_one_minus|^posterior_|^lvlb_|^conditioner\.embedders\.[2-9]"
)


@dataclass(frozen=True, slots=True)
class Weights:
    """A model's networks, ready to run; `dtype` is the UNets' and the text encoders'.

    `inpainting` is a second UNet, with 9 channels, that draws into pictures.
    """

    detection: Detection
    architecture: Architecture
    unet: UNet
    vae: Vae
    text_encoders: tuple[TextEncoder, ...]
    device: torch.device
    dtype: torch.dtype
    vae_dtype: torch.dtype
    inpainting: UNet | None = None


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
        dtype: None chooses by device and size (see `chosen_dtype`).
        prediction, zsnr: say what the file does not, or wrongly, say of itself.
        vae: a file whose VAE takes the place of the checkpoint's own.
        text_encoders: in the same way one file that holds them all, or a file for each, first CLIP-L.
        inpainting: a file whose UNet, of 9 channels, draws into pictures; whatever else it holds is left alone.

    Raises:
        WeightsError: the checkpoint or a replacement cannot serve; one line with file and reason.
        PipelineError: the attention asked for is not installed.
    """
    checkpoint, place = open_checkpoint(Path(path)), torch.device(device)
    identity = detect(checkpoint.path, prediction, zsnr)
    architecture = _architecture(checkpoint, identity)
    unet, decoder, towers = build_networks(architecture)
    parts = model_parts(architecture, unet.module, decoder.module, [tower.module for tower in towers])
    load_parts(checkpoint, parts, _replacements(checkpoint, parts, vae, text_encoders))
    dtype = dtype or choose_dtype(checkpoint, place)
    vae_dtype = vae_dtype or choose_vae_dtype(dtype, place)
    if place.type == "cuda":
        for file in checkpoint_files(checkpoint):
            read_ahead(file)
    for part in parts:
        # not diffusers' own `to`, which logs advice about loaders that are not used here
        nn.Module.to(part.module, place, vae_dtype if part.folder == "vae" else dtype)
    set_attention(unet, attention)
    inpainter = None if inpainting is None else _inpainting_unet(inpainting, identity)
    if inpainter is not None:
        nn.Module.to(inpainter.module, place, dtype)
        set_attention(inpainter, attention)
    return Weights(identity, architecture, unet, decoder, towers, place, dtype, vae_dtype, inpainter)


def _architecture(checkpoint: Checkpoint, identity: Detection) -> Architecture:
    """The shape a file tells of itself, or that of its family."""
    known = sdxl if identity.family == "sdxl" else sd15
    return embedded_architecture(checkpoint) or known(identity.channels)


def _inpainting_unet(path: Path, model: Detection) -> DiffusersUNet:
    checkpoint, found = open_checkpoint(path), detect_inpainting(path, model)
    architecture = _architecture(checkpoint, found)
    unet, vae, towers = build_networks(architecture)
    part = model_parts(architecture, unet.module, vae.module, [tower.module for tower in towers])[0]
    load_state(part.module, _read(checkpoint, part, _located(checkpoint, part)))
    return unet


def _replacements(
    checkpoint: Checkpoint, parts: Sequence["ModelPart"], vae: Path | None, text_encoders: tuple[Path, ...]
) -> dict[str, Path]:
    """The files that stand in for parts of the checkpoint, by the parts' folders."""
    folders = [part.folder for part in parts if part.folder.startswith("text_encoder")]
    given = text_encoders * len(folders) if len(text_encoders) == 1 else text_encoders
    if given and len(given) != len(folders):
        raise WeightsError(checkpoint.path, f"{len(given)} text encoders are given; it takes {len(folders)}")
    return dict(zip(folders, given, strict=False)) | ({} if vae is None else {"vae": vae})


def choose_vae_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """bfloat16 on CUDA and beside bfloat16 networks, else float32: SDXL's VAE overflows in float16."""
    return torch.bfloat16 if device.type == "cuda" or dtype == torch.bfloat16 else torch.float32


def choose_dtype(checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """Half precision on a GPU, bfloat16 if the file is; on a CPU float32 for small files, else bfloat16."""
    stored = {located.dtype for located in checkpoint.tensors.values()}
    if device.type == "cuda" and "BF16" in stored and "F16" not in stored:
        return torch.bfloat16
    if device.type != "cpu":
        return torch.float16
    size = sum(file.stat().st_size for file in checkpoint_files(checkpoint))
    return torch.float32 if size < LARGE else torch.bfloat16


@dataclass(frozen=True, slots=True)
class ModelPart:
    """A network to fill: its folder in a diffusers layout, the prefix and the sources of a single file."""

    folder: str
    module: nn.Module
    prefix: str
    sources: Mapping[str, MappedKey]


def model_parts(
    architecture: Architecture, unet: nn.Module, vae: nn.Module, towers: Sequence[nn.Module]
) -> tuple[ModelPart, ...]:
    """The networks of a model, each with where its weights lie."""
    texts = (
        ModelPart(
            "text_encoder" if number == 0 else f"text_encoder_{number + 1}",
            tower,
            text_prefix(architecture, number),
            map_text_keys(tower.state_dict(), architecture, number),
        )
        for number, tower in enumerate(towers)
    )
    return (
        ModelPart("unet", unet, UNET, map_unet_keys(unet.state_dict(), architecture.unet)),
        ModelPart("vae", vae, VAE, map_vae_keys(vae.state_dict(), architecture.vae)),
        *texts,
    )


def load_parts(checkpoint: Checkpoint, parts: Sequence[ModelPart], replacements: Mapping[str, Path]) -> None:
    """Fill every part, from the checkpoint or from what replaces it.

    Raises:
        WeightsError: something is missing, of another shape, or left over.
    """
    taken: set[str] = set()
    replaced: list[str] = []
    for part in parts:
        origin = checkpoint
        if part.folder in replacements:
            origin = open_checkpoint(replacements[part.folder])
            replaced += [part.prefix, f"{part.folder}."]
        found = _located(origin, part)
        taken |= {key for key, _ in found.values()}
        load_state(part.module, _read(origin, part, found))
    extra = [key for key in checkpoint.tensors if key not in taken and not JUNK.search(key)]
    extra = [key for key in extra if not key.startswith(tuple(replaced))]
    if extra:
        raise WeightsError(checkpoint.path, f"{_listed('unexpected', extra)}; it is of another architecture")


def _located(origin: Checkpoint, part: ModelPart) -> dict[str, tuple[str, MappedKey]]:
    """For each of our keys, the key in the file and how it is shaped there."""
    found: dict[str, tuple[str, MappedKey]] = {}
    absent: list[str] = []
    for name, source in part.sources.items():
        match = next(
            ((key, how) for key, how in _spellings(part, name, source) if key in origin.tensors), None
        )
        if match is None:
            absent.append(source.key if origin.layout == "single" else f"{part.folder}.{name}")
        else:
            found[name] = match
    if not found:
        raise WeightsError(
            origin.path, f"it holds no {part.folder}; name a file that does as its replacement"
        )
    if absent:
        raise WeightsError(origin.path, _listed("missing", absent))
    return found


def _spellings(part: ModelPart, name: str, source: MappedKey) -> Iterator[tuple[str, MappedKey]]:
    """The keys one weight may have: as in a single file, in a file of that part alone, in a diffusers folder."""
    yield source.key, source
    yield source.key.removeprefix(part.prefix), source
    yield source.key.replace(SD1_TEXT, LEAKED_TEXT), source
    bare = name.removeprefix("text_model.")
    for ours in dict.fromkeys((name, bare, f"text_model.{bare}", _old_attention(name))):
        yield f"{part.folder}.{ours}", MappedKey(ours, "conv" if source.shaping == "conv" else "same")
        yield ours, MappedKey(ours)


def _old_attention(name: str) -> str:
    for now, then in OLD_ATTENTION.items():
        name = name.replace(now, then)
    return name


def _read(
    origin: Checkpoint, part: ModelPart, found: Mapping[str, tuple[str, MappedKey]]
) -> dict[str, Tensor]:
    """The tensors of a part, as views of the files they lie in."""
    wanted = {name: tensor.shape for name, tensor in part.module.state_dict().items()}
    tensors: dict[str, Tensor] = {}
    with ExitStack() as stack:
        opened: dict[Path, Any] = {
            file: stack.enter_context(cast("Any", safe_open)(file, framework="pt"))
            for file in dict.fromkeys(origin.tensors[key].file for key, _ in found.values())
        }
        for name, (key, source) in found.items():
            located = origin.tensors[key]
            tensors[name] = source.to_model(opened[located.file].get_tensor(located.key))
            if tensors[name].shape != wanted[name]:
                shapes = f"{tuple(tensors[name].shape)}, not {tuple(wanted[name])}"
                raise WeightsError(
                    origin.path, f"{key} has the shape {shapes}; it is of another architecture"
                )
    return tensors


def _listed(what: str, keys: Sequence[str]) -> str:
    shown = ", ".join(sorted(keys)[:3])
    return f"{len(keys)} {what} ({shown}{', ...' if len(keys) > 3 else ''})"
