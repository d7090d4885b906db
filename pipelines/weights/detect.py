"""Detect what a checkpoint is from its headers and the configs that belong to it, and keep the evidence.

Keys and shapes decide the family (families.py), evidence.py finds the prediction. Networks that cannot run are refused
by name: run as another kind they would generate noise.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.errors import WeightsError
from pipelines.types import Family, PredictionType
from pipelines.weights.architecture import METADATA_KEY
from pipelines.weights.checkpoint import (
    TEXT_ENCODER_FOLDERS,
    VAE_PREFIX,
    Checkpoint,
    Layout,
    open_checkpoint,
)
from pipelines.weights.claim import Claim
from pipelines.weights.edm import read_sigma_range
from pipelines.weights.embedded import choose_architecture, read_embedded
from pipelines.weights.evidence import find_prediction, find_zsnr
from pipelines.weights.families import CONV_IN_KEYS, CONV_OUT_KEYS, FAMILIES, ModelFamily
from pipelines.weights.header import TensorRef
from pipelines.weights.latents import check_latents
from pipelines.weights.naming import IGNORED_KEY, find_component
from pipelines.weights.other_kinds import describe_other_kind
from pipelines.weights.quantization import refuse_quantized
from pipelines.weights.scheduler_config import check_betas
from pipelines.weights.sidecar import find_sidecar

LORA_KEY = re.compile(r"^(lora_|unet\..*lora|.*\.(lora_(up|down|A|B)|hada_w\d\w*|lokr_w\d\w*|dora_scale)\b)")
CONTROL_KEY = re.compile(r"^control_model\.|(^|\.)(controlnet_cond_embedding|input_hint_block)\.")

VAE_INPUT_KEYS = tuple(prefix + "decoder.conv_in.weight" for prefix in (VAE_PREFIX, "vae.", ""))
UNSUPPORTED = {
    "edm_mean": "Playground v2.5, an EDM model with scaled latents",
    "time_embedding.cond_proj.": "a latent consistency model that takes the guidance scale as an input",
    "double_blocks.": "a Flux model",
    "joint_blocks.": "a Stable Diffusion 3 model",
}
"""Parts of keys that only models of other kinds have."""


ASSUMED = Claim("the default, as the file indicates no other", "eps")
"""The prediction of a file that indicates none."""


@dataclass(frozen=True, slots=True)
class Detection:
    """What a checkpoint is, and why; `missing` lists the components that it does not contain."""

    family: Family
    layout: Layout
    channels: int
    prediction: PredictionType
    zsnr: bool
    evidence: tuple[str, ...]
    missing: tuple[str, ...] = ()
    sigma_range: tuple[float, float] | None = None  # of a network with EDM velocity prediction
    is_assumed: bool = False  # whether the prediction is only the default, as nothing indicates one


def detect(path: Path, prediction: PredictionType | None = None, zsnr: bool | None = None) -> Detection:
    """Detect what a file or folder is; `prediction` and `zsnr` override what it indicates.

    Raise WeightsError, with the reason, if it is not a model that can run.
    """
    return detect_checkpoint(open_checkpoint(path), prediction, zsnr)


def detect_checkpoint(
    checkpoint: Checkpoint, prediction: PredictionType | None = None, zsnr: bool | None = None
) -> Detection:
    """Detect what an open checkpoint is, like `detect`."""
    family, channels, family_evidence = _detect_family(checkpoint)
    claim = _choose_prediction(checkpoint, prediction, zsnr)
    chosen: PredictionType = claim.prediction or "eps"
    has_zsnr, zsnr_evidence = _choose_zsnr(checkpoint, family, claim, zsnr)
    _check_configs(checkpoint, family, channels, chosen)
    sigma_range = read_sigma_range(checkpoint) if chosen == "edm_v" else None
    evidence = [family_evidence, *_list_strays(checkpoint), str(claim), *zsnr_evidence]
    if sigma_range is not None:
        evidence.append(f"sigma from {sigma_range[0]:g} to {sigma_range[1]:g}")
    return Detection(
        family.name,
        checkpoint.layout,
        channels,
        chosen,
        has_zsnr,
        tuple(evidence),
        tuple(_find_missing(checkpoint, family)),
        sigma_range,
        is_assumed=claim == ASSUMED,
    )


def detect_inpainting(path: Path, model: Detection) -> Detection:
    """Detect the UNet of a file that is to inpaint for a model, whose prediction it has if it indicates none.

    Raise WeightsError if it does not have 9 input channels, or is of another family or prediction than the model.
    """
    detection = detect(path)
    if detection.channels != 9:
        reason = f"its UNet has {detection.channels} input channels; one for inpainting has 9"
        raise WeightsError(path, reason)
    if detection.is_assumed:
        detection = _adopt_prediction(detection, model)
    for name in ("family", "prediction", "zsnr"):
        value, expected = getattr(detection, name), getattr(model, name)
        if value != expected and (name == "family" or not model.is_assumed):
            raise WeightsError(path, f"its UNet's {name} is {value}, the model's {expected}")
    return detection


def _adopt_prediction(detection: Detection, model: Detection) -> Detection:
    return replace(
        detection,
        prediction=model.prediction,
        zsnr=model.zsnr,
        sigma_range=model.sigma_range,
        evidence=(detection.evidence[0], "its prediction is the model's, as the file indicates none"),
        is_assumed=model.is_assumed,
    )


def _choose_prediction(checkpoint: Checkpoint, prediction: PredictionType | None, zsnr: bool | None) -> Claim:
    if prediction is not None:
        return Claim(f"the configuration sets {prediction}", prediction)
    claim = find_prediction(checkpoint)
    if claim is None and zsnr:
        return Claim("the configuration sets zero terminal SNR, which no other prediction has", "v")
    return claim or ASSUMED


def _choose_zsnr(
    checkpoint: Checkpoint, family: ModelFamily, claim: Claim, zsnr: bool | None
) -> tuple[bool, tuple[str, ...]]:
    """Whether the terminal SNR is zero, and the evidence: the configuration, the file's own, the family's rule."""
    if zsnr and claim.prediction != "v":
        reason = (
            f"zero terminal SNR is impossible with {claim}; correct `zsnr` or `prediction` in the catalog"
        )
        raise WeightsError(checkpoint.path, reason)
    if zsnr is not None:
        return zsnr, (f"the configuration sets zero terminal SNR to {zsnr}",)
    if claim.prediction != "v":
        return False, ()
    if claim.zsnr is not None:
        return claim.zsnr, ()
    stated = find_zsnr(checkpoint)
    if stated is not None and stated.zsnr is not None:
        return stated.zsnr, (f"zero terminal SNR {'on' if stated.zsnr else 'off'}: {stated.source}",)
    has_zsnr, owner = family.v_implies_zsnr, f"{family.title} models with velocity prediction"
    rule = f"{owner} {'have' if has_zsnr else 'do not have'} it unless the file or the configuration sets it"
    return has_zsnr, (f"zero terminal SNR {'on' if has_zsnr else 'off'}: {rule}",)


def _check_configs(
    checkpoint: Checkpoint, family: ModelFamily, channels: int, prediction: PredictionType
) -> None:
    """Refuse unsupported latent scales and noise tables; a configured prediction does not override them."""
    latent_scale = choose_architecture(checkpoint, family.name, channels).latent_scale
    check_latents(checkpoint.path, latent_scale)
    if prediction != "edm_v":
        check_betas(checkpoint.path, checkpoint.scheduler)
    sidecar = find_sidecar(checkpoint.path)
    if sidecar is not None:
        sidecar.check(latent_scale)


def _detect_family(checkpoint: Checkpoint) -> tuple[ModelFamily, int, str]:
    """The family, the UNet's input channels, and the evidence."""
    _refuse_other_kinds(checkpoint)
    conv_in = checkpoint.find(CONV_IN_KEYS)
    if conv_in is None:
        if checkpoint.find(VAE_INPUT_KEYS) is not None:
            raise WeightsError(checkpoint.path, "a VAE alone, not a model; set it as the `vae` of a model")
        reason = describe_other_kind(checkpoint.tensors.values())
        raise WeightsError(checkpoint.path, reason or "it contains no UNet of Stable Diffusion")
    channels = _read_channels(checkpoint.path, conv_in)
    if channels not in (4, 9):
        raise WeightsError(
            checkpoint.path,
            f"a UNet with {channels} input channels (an edit or control model); only 4 or 9 are supported",
        )
    embedded = read_embedded(checkpoint)
    if embedded is not None:
        evidence = f"{embedded.family} in a shape of its own (metadata {METADATA_KEY}), {channels} channels"
        return FAMILIES[embedded.family], channels, evidence
    for family in FAMILIES.values():
        if family.matches(checkpoint):
            return family, channels, f"{family.title}: {family.evidence}, {channels} channels"
    titles = " or ".join(family.title for family in FAMILIES.values())
    raise WeightsError(checkpoint.path, f"it contains no UNet of {titles}")


def _read_channels(path: Path, conv_in: TensorRef) -> int:
    if len(conv_in.shape) != 4:
        reason = (
            f"{conv_in.key} has the shape {conv_in.shape}, not four dimensions; it is damaged or compressed"
        )
        raise WeightsError(path, reason)
    return conv_in.shape[1]


def _refuse_other_kinds(checkpoint: Checkpoint) -> None:
    keys = checkpoint.tensors
    refuse_quantized(checkpoint.path, (key for key in keys if find_component(key) in {None, "unet"}))
    # next to a whole UNet, keys of these kinds are what a merge left over, and are not loaded
    has_unet = bool(checkpoint.find(CONV_IN_KEYS) and checkpoint.find(CONV_OUT_KEYS))
    if any(LORA_KEY.match(key) and not (has_unet and IGNORED_KEY.search(key)) for key in keys):
        reason = "a LoRA, not a model; it changes a model that must be loaded first"
        raise WeightsError(checkpoint.path, reason)
    if not has_unet and any(key.startswith("ip_adapter.") for key in keys):
        raise WeightsError(checkpoint.path, "an IP-Adapter, not a model; name it as the `vibe` of one")
    if not has_unet and any(CONTROL_KEY.search(key) for key in keys):
        reason = "a ControlNet, not a model; name it under [controlnets] of the catalog"
        raise WeightsError(checkpoint.path, reason)
    for part, name in UNSUPPORTED.items():
        if any(part in key and not (has_unet and IGNORED_KEY.search(key)) for key in keys):
            raise WeightsError(checkpoint.path, f"{name}, which is not supported")
    vae_input = checkpoint.find(VAE_INPUT_KEYS)
    if vae_input is not None and len(vae_input.shape) == 4 and vae_input.shape[1] != 4:
        reason = f"its VAE has {vae_input.shape[1]} latent channels; only 4 are supported"
        raise WeightsError(checkpoint.path, reason)


def _list_strays(checkpoint: Checkpoint) -> Iterator[str]:
    """A line about the keys of other networks that a merge left next to the UNet, if there are any."""
    count = sum(bool(LORA_KEY.match(key)) or key.startswith("control_model.") for key in checkpoint.tensors)
    if count:
        yield f"{count} tensors of a LoRA or a ControlNet are ignored"


def _find_missing(checkpoint: Checkpoint, family: ModelFamily) -> Iterator[str]:
    """Names of the components of which the checkpoint has no tensor."""
    if checkpoint.find(VAE_INPUT_KEYS) is None:
        yield "vae"
    for folder, prefix in zip(TEXT_ENCODER_FOLDERS, family.text_prefixes, strict=False):
        if not any(key.startswith((prefix, f"{folder}.")) for key in checkpoint.tensors):
            yield folder
