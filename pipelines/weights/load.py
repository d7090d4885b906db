"""Load a checkpoint from disk onto a device: strictly, offline, and without needless copies.

Tensors are memory-mapped from safetensors files and assigned to empty networks, or read onto the device block by block
where the dtype or the device is another (reader.py). What a header can show is checked before (model_plan.py), NaN and
infinity while they are read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pipelines.memory_plan import EVERYTHING_RESIDENT, MemoryPlan
from pipelines.offload import Offload, move_weights
from pipelines.speed import PLAIN, Speed, SpeedChoices, WeightFormat, choose_speed
from pipelines.types import AttentionBackend, PredictionType
from pipelines.weights.architecture import Architecture
from pipelines.weights.checkpoint import TEXT_ENCODER_FOLDERS, Checkpoint, checkpoint_files
from pipelines.weights.detect import Detection
from pipelines.weights.model_plan import ModelPlan, PlannedPart, fill_parts, plan_model
from pipelines.weights.networks import TextEncoder, UNet, Vae, set_attention
from pipelines.weights.placement import choose_plan, place_weights
from pipelines.weights.prefetch import prefetch

FLOAT32_LIMIT = 1 << 30
"""Bytes of a checkpoint below which a CPU runs it in float32."""


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
    parts: tuple[PlannedPart, ...] = ()  # the networks again, with the files that filled them
    memory: MemoryPlan = EVERYTHING_RESIDENT
    offload: Offload | None = None  # the weights that wait in CPU memory
    speed: Speed = PLAIN  # how the UNets are run

    def move(self, module: nn.Module, device: torch.device) -> None:
        """Move a network's weights, except those that wait in CPU memory."""
        if self.offload is None:
            nn.Module.to(module, device)
        else:
            self.offload.clear()
            move_weights(module, device, self.offload)


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
    clip_skip: int | None = None,
    attention: AttentionBackend = "sdpa",
    speed: SpeedChoices | None = None,
    gigabytes: int | None = None,
    on_part: Callable[[str], None] | None = None,
) -> Weights:
    """Load a model.

    Args:
        dtype: None chooses by device and size (see `choose_dtype`).
        prediction, zsnr: override what the file indicates.
        vae: a file whose VAE replaces the checkpoint's.
        text_encoders: replacements likewise: one file that contains them all, or one for each, CLIP-L first.
        inpainting: a file whose UNet, with 9 input channels, is used for inpainting; the rest of it is ignored.
        speed: how the UNets are run, see pipelines/speed.py; None chooses by device.
        gigabytes: memory of the card to plan for, see pipelines/memory_plan.py; None plans for what is free.
        clip_skip: which layer of the text encoder is used, counted from the last, 1; None for the family's own.
        on_part: called after each part of the work: "plan", which imports and builds the networks, and "read".

    Raises:
        WeightsError: the checkpoint or a replacement cannot be used; one line with file and reason.
        UnusableSetting: the attention backend is not installed, or weights that have to be on the device do not fit.
    """
    target = torch.device(device)
    files = (Path(path), vae, *text_encoders, inpainting)
    with prefetch(file for file in files if file is not None):
        plan = plan_model(Path(path), prediction, zsnr, vae, text_encoders, inpainting, clip_skip)
    if on_part is not None:
        on_part("plan")
    dtypes = choose_dtypes(plan.checkpoint, target, dtype, vae_dtype)
    memory, chosen = plan_run(plan, target, dtypes, speed or SpeedChoices(), gigabytes)
    _fill_all(plan, memory, target, dtypes, chosen.weights)
    _quantize(plan, memory, target, chosen.weights)
    offload = place_weights(plan, memory, target)
    if on_part is not None:
        on_part("read")
    for unet in (plan.unet, plan.inpainting):
        if unet is not None:
            set_attention(unet, attention)
            unet.optimize(chosen, target)
    plan.vae.optimize(chosen)
    networks = (plan.unet, plan.vae, plan.text_encoders)
    place = target, *dtypes
    rest = plan.inpainting, plan.parts, memory, offload, chosen
    return Weights(plan.detection, plan.architecture, *networks, *place, *rest)


def plan_run(
    plan: ModelPlan,
    device: torch.device,
    dtypes: tuple[torch.dtype, torch.dtype],
    choices: SpeedChoices,
    gigabytes: int | None,
) -> tuple[MemoryPlan, Speed]:
    """Return where the weights of a model will be, and how its networks are run; see `load_weights`.

    Raises:
        UnusableSetting: weights that have to be on the device do not fit.
    """
    memory = choose_plan(plan, device, *dtypes, gigabytes, choices.weights != "full")
    return memory, choose_speed(device, choices, memory.streamed)


def _fill_all(
    plan: ModelPlan,
    memory: MemoryPlan,
    device: torch.device,
    dtypes: tuple[torch.dtype, torch.dtype],
    weights: WeightFormat,
) -> None:
    """Read all weights; into CPU memory those of networks that are offloaded, or a part of which is.

    A UNet that is quantized is read there too, because the device need not have room for it in full.
    """
    waiting = {"unet"} if memory.offloads_unet or weights != "full" else set[str]()
    waiting |= set(TEXT_ENCODER_FOLDERS) if memory.offloads_encoders else set()
    dtype, vae_dtype = dtypes
    for place, is_waiting in ((device, False), (torch.device("cpu"), True)):
        parts = [planned for planned in plan.parts if (planned.part.folder in waiting) is is_waiting]
        fill_parts([(each, vae_dtype if each.part.folder == "vae" else dtype) for each in parts], place)


def _quantize(plan: ModelPlan, memory: MemoryPlan, device: torch.device, weights: WeightFormat) -> None:
    """Quantize the UNets, which are in CPU memory, and move them to the device unless a part of them stays there."""
    for unet in (plan.unet, plan.inpainting):
        if unet is not None and weights != "full":
            unet.quantize(weights, device)
            if not memory.offloads_unet:
                unet.module.to(device)


def choose_dtypes(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype | None = None,
    vae_dtype: torch.dtype | None = None,
) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtype of the UNet and the text encoders, and that of the VAE; those that are given stay."""
    dtype = dtype or choose_dtype(checkpoint, device)
    return dtype, vae_dtype or choose_vae_dtype(dtype, device)


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
