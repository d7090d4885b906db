"""Detect what a checkpoint is from its headers alone, and keep the evidence.

Keys and shapes decide the family (families.py). Markers, metadata, the scheduler's config and finally the file's
name decide the prediction, in that order. Markers are empty tensors (ComfyUI, SimpleTuner, OneTrainer write them):
the key is what counts. Networks that cannot run are refused by name: run as another kind they would generate noise.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import WeightsError
from pipelines.types import Family, PredictionType
from pipelines.weights.architecture import METADATA_KEY
from pipelines.weights.checkpoint import TEXT_ENCODER_FOLDERS, VAE_PREFIX, Checkpoint, Layout, open_checkpoint
from pipelines.weights.embedded import read_embedded
from pipelines.weights.families import CONV_IN_KEYS, CONV_OUT_KEYS, FAMILIES, ModelFamily
from pipelines.weights.naming import IGNORED_KEY, find_component
from pipelines.weights.quantization import refuse_quantized

PredictionEvidence = tuple[PredictionType, bool, str]
"""A prediction, whether the terminal SNR is zero, and the evidence as a sentence."""

LORA_KEY = re.compile(r"^(lora_|unet\..*lora|.*\.(lora_(up|down|A|B)|hada_w\d\w*|lokr_w\d\w*|dora_scale)\b)")
EPS_NAME = re.compile(r"(?<![a-z])eps(?![a-z])|epsilon", re.IGNORECASE)
V_NAME = re.compile(r"v[-_ ]?pred", re.IGNORECASE)
FLOW_NAME = re.compile(r"rectified|bigasp[-_ ]?v?2[-_.]?5|(?<![a-z])(rf|fm|flow)(?![a-z])", re.IGNORECASE)

VAE_INPUT_KEYS = tuple(prefix + "decoder.conv_in.weight" for prefix in (VAE_PREFIX, "vae.", ""))
UNSUPPORTED = {
    "edm_mean": "a Playground EDM model",
    "control_model.": "a ControlNet",
    "controlnet_cond_embedding.": "a ControlNet",
    "double_blocks.": "a Flux model",
    "joint_blocks.": "a Stable Diffusion 3 model",
}
"""Parts of keys that only models of other kinds have."""


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


def detect(path: Path, prediction: PredictionType | None = None, zsnr: bool | None = None) -> Detection:
    """Detect what a file or folder is; `prediction` and `zsnr` override what it indicates.

    Raise WeightsError, with the reason, if it is not a model that can run.
    """
    checkpoint = open_checkpoint(path)
    family, channels, family_evidence = _detect_family(checkpoint)
    if prediction is None:
        prediction, has_zsnr, prediction_evidence = _detect_prediction(checkpoint)
    else:
        has_zsnr = prediction == "v" and family.v_implies_zsnr
        prediction_evidence = f"the configuration sets {prediction} prediction"
    evidence = [family_evidence, prediction_evidence]
    if zsnr is not None:
        has_zsnr = zsnr
        evidence.append(f"the configuration sets zero terminal SNR to {zsnr}")
    if has_zsnr and prediction != "v":
        reason = f"zero terminal SNR is impossible with {prediction} prediction; correct one of the two"
        raise WeightsError(path, reason)
    missing = tuple(_find_missing(checkpoint, family))
    return Detection(family.name, checkpoint.layout, channels, prediction, has_zsnr, tuple(evidence), missing)


def detect_inpainting(path: Path, model: Detection) -> Detection:
    """Detect the UNet of a file that is to inpaint for a model.

    Raise WeightsError if it does not have 9 input channels, or is of another family or prediction than the model.
    """
    detection = detect(path)
    if detection.channels != 9:
        reason = f"its UNet has {detection.channels} input channels; one for inpainting has 9"
        raise WeightsError(path, reason)
    for name in ("family", "prediction", "zsnr"):
        value, expected = getattr(detection, name), getattr(model, name)
        if value != expected:
            raise WeightsError(path, f"its UNet's {name} is {value}, the model's {expected}")
    return detection


def _detect_family(checkpoint: Checkpoint) -> tuple[ModelFamily, int, str]:
    """The family, the UNet's input channels, and the evidence."""
    _refuse_other_kinds(checkpoint)
    conv_in = checkpoint.find(CONV_IN_KEYS)
    if conv_in is None:
        if checkpoint.find(VAE_INPUT_KEYS) is not None:
            raise WeightsError(checkpoint.path, "a VAE alone, not a model; set it as the `vae` of a model")
        raise WeightsError(checkpoint.path, "it contains no UNet of Stable Diffusion")
    channels = conv_in.shape[1]
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


def _refuse_other_kinds(checkpoint: Checkpoint) -> None:
    keys = checkpoint.tensors
    refuse_quantized(checkpoint.path, (key for key in keys if find_component(key) in {None, "unet"}))
    # next to a whole UNet, keys of these kinds are what a merge left over, and are not loaded
    has_unet = bool(checkpoint.find(CONV_IN_KEYS) and checkpoint.find(CONV_OUT_KEYS))
    if any(LORA_KEY.match(key) and not (has_unet and IGNORED_KEY.search(key)) for key in keys):
        reason = "a LoRA, not a model; it changes a model that must be loaded first"
        raise WeightsError(checkpoint.path, reason)
    for part, name in UNSUPPORTED.items():
        if any(part in key and not (has_unet and IGNORED_KEY.search(key)) for key in keys):
            raise WeightsError(checkpoint.path, f"{name}, which is not supported")
    vae_input = checkpoint.find(VAE_INPUT_KEYS)
    if vae_input is not None and len(vae_input.shape) == 4 and vae_input.shape[1] != 4:
        reason = f"its VAE has {vae_input.shape[1]} latent channels; only 4 are supported"
        raise WeightsError(checkpoint.path, reason)


def _detect_prediction(checkpoint: Checkpoint) -> PredictionEvidence:
    """The result of the first source that indicates a prediction."""
    return (
        _read_markers(checkpoint)
        or _read_metadata(checkpoint)
        or _read_scheduler(checkpoint)
        or _read_name(checkpoint)
        or ("eps", False, "noise prediction: the default, as the file indicates no other")
    )


def _read_markers(checkpoint: Checkpoint) -> PredictionEvidence | None:
    if "edm_vpred.sigma_max" in checkpoint.tensors:
        return "edm_v", False, "EDM velocity prediction: the tensor edm_vpred.sigma_max is present"
    has_v, has_zsnr = "v_pred" in checkpoint.tensors, "ztsnr" in checkpoint.tensors
    if has_v and has_zsnr:
        return "v", True, "velocity prediction, zero terminal SNR: the tensors v_pred and ztsnr are present"
    if has_v:
        return "v", False, "velocity prediction: the tensor v_pred is present, ztsnr is not"
    if has_zsnr:
        reason = "the marker ztsnr without v_pred; set its prediction in the catalog"
        raise WeightsError(checkpoint.path, reason)
    return None


def _read_metadata(checkpoint: Checkpoint) -> PredictionEvidence | None:
    """ModelSpec's key, or ComfyUI's own; trainers record zero terminal SNR under a third."""
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        value = checkpoint.metadata.get(key, "").lower().replace("-", "_")
        if value in ("epsilon", "eps"):
            return "eps", False, f"noise prediction: metadata {key} is {value!r}"
        if value in ("v", "v_prediction", "v_zsnr"):
            has_zsnr, reason = _read_trained_zsnr(checkpoint, value)
            return "v", has_zsnr, f"velocity prediction: metadata {key} is {value!r}{reason}"
    return None


def _read_trained_zsnr(checkpoint: Checkpoint, prediction: str) -> tuple[bool, str]:
    if prediction == "v_zsnr":
        return True, ""
    trained = checkpoint.metadata.get("ss_zero_terminal_snr")
    if trained is None:
        return True, "; zero terminal SNR assumed, as SDXL models with velocity prediction have it"
    return trained.lower() == "true", f"; ss_zero_terminal_snr is {trained}"


def _read_scheduler(checkpoint: Checkpoint) -> PredictionEvidence | None:
    """The scheduler's config, if it departs from the default: `epsilon` is copied between folders unread."""
    config = checkpoint.scheduler
    if "FlowMatch" in str(config.get("_class_name")):
        raise WeightsError(checkpoint.path, "a rectified-flow model by its scheduler, which is not supported")
    if config.get("prediction_type") == "v_prediction":
        has_zsnr = bool(config.get("rescale_betas_zero_snr"))
        evidence = f"velocity prediction: set in the scheduler's config, with zero terminal SNR {has_zsnr}"
        return "v", has_zsnr, evidence
    return None


def _read_name(checkpoint: Checkpoint) -> PredictionEvidence | None:
    # a link's own name counts: in a hub cache it points to a file that is named by its hash
    name = checkpoint.path.name or checkpoint.path.resolve().name
    if V_NAME.search(name) and not EPS_NAME.search(name):
        return "v", True, "velocity prediction, zero terminal SNR: only the file's name indicates it"
    if FLOW_NAME.search(name):
        raise WeightsError(checkpoint.path, "a rectified-flow model by its name, which is not supported")
    return None


def _find_missing(checkpoint: Checkpoint, family: ModelFamily) -> Iterator[str]:
    """Names of the components of which the checkpoint has no tensor."""
    if checkpoint.find(VAE_INPUT_KEYS) is None:
        yield "vae"
    for folder, prefix in zip(TEXT_ENCODER_FOLDERS, family.text_prefixes, strict=False):
        if not any(key.startswith((prefix, f"{folder}.")) for key in checkpoint.tensors):
            yield folder
