"""The networks of a model and the files that fill them, planned from headers: no tensor is read.

`plan_model` makes every check that a file can fail before its tensors are read.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from pipelines.errors import WeightsError
from pipelines.types import PredictionType
from pipelines.weights.architecture import METADATA_KEY, Architecture
from pipelines.weights.checkpoint import TEXT_ENCODER_FOLDERS, Checkpoint, open_checkpoint
from pipelines.weights.detect import Detection, detect_checkpoint, detect_inpainting
from pipelines.weights.embedded import choose_architecture
from pipelines.weights.families import FAMILIES
from pipelines.weights.key_map import MappedKey, map_text_keys, map_unet_keys, map_vae_keys
from pipelines.weights.latents import check_latents
from pipelines.weights.naming import Naming, name_text_encoder, name_unet, name_vae
from pipelines.weights.networks import (
    ClipTextEncoder,
    TorchUNet,
    TorchVae,
    build_networks,
)
from pipelines.weights.reader import EmptyNetwork, fill_networks
from pipelines.weights.sources import Component, FoundWeights, find_weights

BUILD_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What the constructors of networks raise for a config that makes no sense."""


@dataclass(frozen=True, slots=True)
class ModelPart:
    """A network to fill."""

    folder: str  # in a diffusers layout
    module: nn.Module
    keys: Mapping[str, MappedKey]  # where each of its weights is in a single file
    find_namings: Callable[[], Iterable[Naming]]  # under which names a file may have them

    @property
    def component(self) -> Component:
        """What finding its weights needs to know."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.module.state_dict().items()}
        return Component(self.folder, shapes, self.find_namings())


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """A network, and where each of its weights is."""

    part: ModelPart
    source: Checkpoint
    weights: FoundWeights

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that fill the network."""
        refs = (self.source.tensors[weight.mapped.key] for weight in self.weights.values())
        return tuple(dict.fromkeys(ref.file for ref in refs))

    def fill(self, device: torch.device, dtype: torch.dtype) -> None:
        """Read the weights onto a device; raise WeightsError if one is not finite."""
        fill_parts([(self, dtype)], device)


def fill_parts(parts: Sequence[tuple[PlannedPart, torch.dtype]], device: torch.device) -> None:
    """Read the weights of networks onto a device, each in its dtype; raise WeightsError if one is not finite."""
    empty = [EmptyNetwork(each.part.module, each.source, each.weights, dtype) for each, dtype in parts]
    fill_networks(empty, device)


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """A model's networks, still empty, and where their weights are."""

    checkpoint: Checkpoint
    detection: Detection
    architecture: Architecture
    unet: TorchUNet
    vae: TorchVae
    text_encoders: tuple[ClipTextEncoder, ...]
    inpainting: TorchUNet | None  # a second UNet, with 9 input channels
    parts: tuple[PlannedPart, ...]  # where the weights of all of them are


def plan_model(
    path: Path,
    prediction: PredictionType | None = None,
    zsnr: bool | None = None,
    vae: Path | None = None,
    text_encoders: tuple[Path, ...] = (),
    inpainting: Path | None = None,
    clip_skip: int | None = None,
) -> ModelPlan:
    """Plan the loading of a model; the arguments are those of `pipelines.weights.load.load_weights`.

    Raises:
        WeightsError: the checkpoint or a replacement cannot be used; one line with file and reason.
    """
    checkpoint = open_checkpoint(path)
    detection = detect_checkpoint(checkpoint, prediction, zsnr)
    architecture = choose_architecture(checkpoint, detection.family, detection.channels)
    _check_clip_skip(path, architecture, clip_skip)
    if vae is not None:
        check_latents(vae, architecture.latent_scale)
    unet, vae_network, encoders = _build(checkpoint, architecture, clip_skip)
    modules = [encoder.module for encoder in encoders]
    parts = model_parts(architecture, unet.module, vae_network.module, modules)
    planned = plan_parts(checkpoint, parts, _assign_replacements(checkpoint, parts, vae, text_encoders))
    networks = (unet, vae_network, encoders)
    if inpainting is None:
        return ModelPlan(checkpoint, detection, architecture, *networks, None, planned)
    second, second_planned = _plan_inpainting(inpainting, detection)
    return ModelPlan(checkpoint, detection, architecture, *networks, second, (*planned, second_planned))


def _check_clip_skip(path: Path, architecture: Architecture, clip_skip: int | None) -> None:
    if clip_skip is None:
        return
    family = FAMILIES[architecture.family]
    if not family.takes_clip_skip:
        raise WeightsError(
            path, f"clip_skip = {clip_skip} is set, but {family.title} has a fixed layer; remove it"
        )
    layers = min(encoder.layers for encoder in architecture.text_encoders)
    if not 1 <= clip_skip <= layers:
        raise WeightsError(
            path, f"clip_skip = {clip_skip} is set; 1 (the last layer) to {layers} are allowed"
        )


def _build(
    checkpoint: Checkpoint, architecture: Architecture, clip_skip: int | None = None
) -> tuple[TorchUNet, TorchVae, tuple[ClipTextEncoder, ...]]:
    try:
        return build_networks(architecture, clip_skip)
    except BUILD_ERRORS as error:
        if METADATA_KEY not in checkpoint.metadata:
            raise
        reason = f"metadata {METADATA_KEY} describes networks that cannot be built"
        raise WeightsError(checkpoint.path, reason) from error


def _plan_inpainting(path: Path, model: Detection) -> tuple[TorchUNet, PlannedPart]:
    """Plan the UNet of another checkpoint; the rest of that is ignored."""
    checkpoint, detection = open_checkpoint(path), detect_inpainting(path, model)
    architecture = choose_architecture(checkpoint, detection.family, detection.channels)
    unet = _build(checkpoint, architecture)[0]
    (planned,) = plan_parts(checkpoint, model_parts(architecture, unet.module)[:1], {})
    return unet, planned


def model_parts(
    architecture: Architecture,
    unet: nn.Module,
    vae: nn.Module | None = None,
    text_encoders: Sequence[nn.Module] = (),
) -> tuple[ModelPart, ...]:
    """Return the networks of a model, each with the places of its weights."""
    config, names = architecture.unet, tuple(unet.state_dict())
    parts = [ModelPart("unet", unet, map_unet_keys(names, config), partial(name_unet, names, config))]
    if vae is not None:
        config, names = architecture.vae, tuple(vae.state_dict())
        parts.append(ModelPart("vae", vae, map_vae_keys(names, config), partial(name_vae, names, config)))
    for number, (folder, module) in enumerate(zip(TEXT_ENCODER_FOLDERS, text_encoders, strict=False)):
        names = tuple(module.state_dict())
        keys = map_text_keys(names, architecture, number)
        parts.append(ModelPart(folder, module, keys, partial(name_text_encoder, names, architecture, number)))
    return tuple(parts)


def plan_parts(
    checkpoint: Checkpoint, parts: Sequence[ModelPart], replacements: Mapping[str, Path]
) -> tuple[PlannedPart, ...]:
    """Find the weights of every part, in the checkpoint or in the file that replaces it, by the part's folder."""
    paths = {part.folder: replacements.get(part.folder, checkpoint.path) for part in parts}
    found: dict[str, tuple[Checkpoint, FoundWeights]] = {}
    for path in dict.fromkeys(paths.values()):
        source = checkpoint if path == checkpoint.path else open_checkpoint(path)
        components = [part.component for part in parts if paths[part.folder] == path]
        found |= {folder: (source, weights) for folder, weights in find_weights(source, components).items()}
    return tuple(PlannedPart(part, *found[part.folder]) for part in parts)


def _assign_replacements(
    checkpoint: Checkpoint, parts: Sequence[ModelPart], vae: Path | None, text_encoders: tuple[Path, ...]
) -> dict[str, Path]:
    """The files that replace parts of the checkpoint, by the parts' folders."""
    folders = [part.folder for part in parts if part.folder in TEXT_ENCODER_FOLDERS]
    files = text_encoders * len(folders) if len(text_encoders) == 1 else text_encoders
    if files and len(files) != len(folders):
        reason = f"{len(files)} text encoders are given, but the model has {len(folders)}"
        raise WeightsError(checkpoint.path, reason)
    return dict(zip(folders, files, strict=False)) | ({} if vae is None else {"vae": vae})
