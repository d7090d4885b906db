"""What a checkpoint is, told from its header alone, and how that is known.

Keys and shapes decide the family; markers, metadata, the scheduler's config and at last the file's name decide
the prediction, in that order. Markers are empty tensors (ComfyUI, SimpleTuner, OneTrainer write them): the key is
what counts. Networks we cannot run are refused by name: run as something else they would draw noise.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.errors import WeightsError
from pipelines.types import PredictionType
from pipelines.weights.architecture import METADATA_KEY, Architecture
from pipelines.weights.checkpoint import Checkpoint, TensorRef, open_checkpoint

PredictionEvidence = tuple[PredictionType, bool, str]
"""A prediction, whether the terminal SNR is zero, and the sentence that says why."""

LORA = re.compile(r"^(lora_|unet\..*lora|.*\.(lora_(up|down|A|B)|hada_w\d\w*|lokr_w\d\w*|dora_scale)\b)")
EPS_NAME = re.compile(r"(?<![a-z])eps(?![a-z])|epsilon", re.IGNORECASE)
V_NAME = re.compile(r"v[-_ ]?pred", re.IGNORECASE)
FLOW_NAME = re.compile(r"rectified|bigasp[-_ ]?v?2[-_.]?5|(?<![a-z])(rf|fm|flow)(?![a-z])", re.IGNORECASE)

# where each thing to look at lies, in a single file and in a diffusers folder
FIRST = (
    "model.diffusion_model.input_blocks.0.0.weight",
    "unet.conv_in.weight",
    "input_blocks.0.0.weight",
    "conv_in.weight",
)
SDXL_CROSS = (
    "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight",
)
SD1_CROSS = (
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
)
SIZE_LABELS = (
    "model.diffusion_model.label_emb.0.0.weight",
    "unet.add_embedding.linear_1.weight",
    "label_emb.0.0.weight",
    "add_embedding.linear_1.weight",
)
UNSUPPORTED = {
    "edm_mean": "a Playground EDM model",
    "control_model.": "a ControlNet",
    "controlnet_cond_embedding.": "a ControlNet",
    "double_blocks.": "a Flux model",
    "joint_blocks.": "a Stable Diffusion 3 model",
}
DEEP_MIDDLE = ("middle_block.1.transformer_blocks.9.", "mid_block.attentions.0.transformer_blocks.9.")
VAE_INPUT = (
    "first_stage_model.decoder.conv_in.weight",
    "vae.decoder.conv_in.weight",
    "decoder.conv_in.weight",
)


@dataclass(frozen=True, slots=True)
class Detection:
    """What a checkpoint is; `missing` lists the components it does not hold."""

    family: Literal["sdxl", "sd15"]
    layout: Literal["single", "diffusers"]
    channels: int
    prediction: PredictionType
    zsnr: bool
    evidence: tuple[str, ...]
    missing: tuple[str, ...] = ()


def detect(path: Path, prediction: PredictionType | None = None, zsnr: bool | None = None) -> Detection:
    """Tell what a file or folder is; a given prediction or zsnr wins over what it says of itself.

    Raises:
        WeightsError: it is nothing we can run, with the reason.
    """
    checkpoint = open_checkpoint(path)
    family, channels, shape = _network(checkpoint)
    if prediction is None:
        predicts, zero, why = _prediction(checkpoint)
    else:
        predicts, zero = prediction, prediction == "v" and family == "sdxl"
        why = f"the configuration says {prediction}"
    evidence = [shape, why]
    if zsnr is not None:
        zero = zsnr
        evidence.append(f"the configuration says zero terminal SNR {zsnr}")
    if zero and predicts != "v":
        raise WeightsError(
            path, f"zero terminal SNR cannot go with {predicts} prediction; one of the two is wrong"
        )
    missing = tuple(_missing(checkpoint, family))
    return Detection(family, checkpoint.layout, channels, predicts, zero, tuple(evidence), missing)


def detect_inpainting(path: Path, model: Detection) -> Detection:
    """What a file's UNet is, if it can draw into a model's pictures.

    Raises:
        WeightsError: it has no 9 channels, or is of another family or prediction.
    """
    found = detect(path)
    if found.channels != 9:
        raise WeightsError(path, f"its UNet has {found.channels} input channels; one for inpainting has 9")
    for what in ("family", "prediction", "zsnr"):
        own, other = getattr(found, what), getattr(model, what)
        if own != other:
            raise WeightsError(path, f"its UNet's {what} is {own}, the model's {other}")
    return found


def _network(checkpoint: Checkpoint) -> tuple[Literal["sdxl", "sd15"], int, str]:
    """Family and input channels, with the sentence that says why."""
    _refuse_strangers(checkpoint)
    first = _find(checkpoint, FIRST)
    if first is None:
        raise WeightsError(checkpoint.path, _what_else(checkpoint))
    channels = first.shape[1]
    if channels not in (4, 9):
        raise WeightsError(
            checkpoint.path,
            f"a UNet with {channels} input channels (an edit or control model); 4 or 9 can run",
        )
    own = embedded_architecture(checkpoint)
    if own is not None:
        return (
            own.family,
            channels,
            f"{own.family} in its own shape (metadata {METADATA_KEY}), {channels} channels",
        )
    cross = _find(checkpoint, SD1_CROSS)
    if cross is not None:
        return _sd(checkpoint, cross.shape[-1], channels)
    return _sdxl(checkpoint, channels)


def embedded_architecture(checkpoint: Checkpoint) -> Architecture | None:
    """The architecture a file carries in its metadata, if it is not one of the known ones.

    Raises:
        WeightsError: what it carries is none.
    """
    try:
        return Architecture.from_json(checkpoint.metadata[METADATA_KEY])
    except KeyError:
        return None
    except ValueError as error:
        raise WeightsError(checkpoint.path, f"metadata {METADATA_KEY} is {error}") from None


def _refuse_strangers(checkpoint: Checkpoint) -> None:
    keys = checkpoint.tensors
    if any(LORA.match(key) for key in keys):
        raise WeightsError(
            checkpoint.path, "a LoRA, not a model; it changes a model that must be loaded first"
        )
    for part, name in UNSUPPORTED.items():
        if any(part in key for key in keys):
            raise WeightsError(checkpoint.path, f"{name}, which is not supported")
    latent = _find(checkpoint, VAE_INPUT)
    if latent is not None and len(latent.shape) == 4 and latent.shape[1] != 4:
        raise WeightsError(checkpoint.path, f"its VAE has {latent.shape[1]} latent channels; 4 can run")


def _what_else(checkpoint: Checkpoint) -> str:
    if _find(checkpoint, VAE_INPUT) is not None:
        return "a VAE alone, not a model; name it as `vae` beside one"
    return "no UNet of Stable Diffusion's is in it"


def _sd(checkpoint: Checkpoint, width: int, channels: int) -> tuple[Literal["sd15"], int, str]:
    if width != 768:
        raise WeightsError(
            checkpoint.path, f"Stable Diffusion 2 (text width {width}), which is not supported"
        )
    return "sd15", channels, f"Stable Diffusion 1: text of width 768 at the first level, {channels} channels"


def _sdxl(checkpoint: Checkpoint, channels: int) -> tuple[Literal["sdxl"], int, str]:
    cross, first = _find(checkpoint, SDXL_CROSS), _find(checkpoint, FIRST)
    if first is not None and first.shape[0] == 384:
        raise WeightsError(
            checkpoint.path, "the SDXL refiner, which draws nothing alone and is not supported"
        )
    if cross is None or cross.shape[-1] != 2048:
        raise WeightsError(checkpoint.path, "neither SDXL's nor Stable Diffusion 1's UNet is in it")
    labels = _find(checkpoint, SIZE_LABELS)
    if labels is not None and labels.shape[-1] != 2816:
        raise WeightsError(
            checkpoint.path, f"like SDXL, but with size labels of width {labels.shape[-1]}, not 2816"
        )
    if not any(part in key for key in checkpoint.tensors for part in DEEP_MIDDLE):
        raise WeightsError(checkpoint.path, "a cut-down SDXL (SSD-1B or Vega), which is not supported")
    return "sdxl", channels, f"SDXL: text of width 2048 at the second level, {channels} channels"


def _prediction(checkpoint: Checkpoint) -> PredictionEvidence:
    """The first witness that has something to say."""
    for witness in PREDICTION_SOURCES:
        judgement = witness(checkpoint)
        if judgement is not None:
            return judgement
    return "eps", False, "noise prediction: nothing says otherwise"


def _edm_marker(checkpoint: Checkpoint) -> PredictionEvidence | None:
    if "edm_vpred.sigma_max" in checkpoint.tensors:
        return "edm_v", False, "EDM velocity prediction: the tensor edm_vpred.sigma_max is there"
    return None


def _marker(checkpoint: Checkpoint) -> PredictionEvidence | None:
    if "v_pred" not in checkpoint.tensors:
        if "ztsnr" in checkpoint.tensors:
            raise WeightsError(
                checkpoint.path, "the marker ztsnr without v_pred; name its prediction in the catalogue"
            )
        return None
    if "ztsnr" in checkpoint.tensors:
        return "v", True, "velocity prediction, zero terminal SNR: the tensors v_pred and ztsnr are there"
    return "v", False, "velocity prediction: the tensor v_pred is there, ztsnr is not"


def _metadata(checkpoint: Checkpoint) -> PredictionEvidence | None:
    """ModelSpec's key, or ComfyUI's own; a trainer says beside it whether the terminal SNR was zero."""
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        value = checkpoint.metadata.get(key, "").lower().replace("-", "_")
        if value in ("v", "v_prediction", "v_zsnr"):
            told = checkpoint.metadata.get("ss_zero_terminal_snr")
            zero = value == "v_zsnr" or told is None or told.lower() == "true"
            return "v", zero, f"velocity prediction: metadata {key} is {value!r}{_assumed(told, value)}"
        if value in ("epsilon", "eps"):
            return "eps", False, f"noise prediction: metadata {key} is {value!r}"
    return None


def _assumed(told: str | None, value: str) -> str:
    if value == "v_zsnr":
        return ""
    if told is None:
        return "; zero terminal SNR assumed, as SDXL models with it have"
    return f"; ss_zero_terminal_snr is {told}"


def _scheduler(checkpoint: Checkpoint) -> PredictionEvidence | None:
    """Only what departs from the default counts: `epsilon` is copied from folder to folder unread."""
    told = checkpoint.scheduler
    if "FlowMatch" in str(told.get("_class_name")):
        raise WeightsError(checkpoint.path, "a rectified-flow model by its scheduler, which is not supported")
    if told.get("prediction_type") == "v_prediction":
        zero = bool(told.get("rescale_betas_zero_snr"))
        return "v", zero, f"velocity prediction: the scheduler's config says so, zero terminal SNR {zero}"
    return None


def _name(checkpoint: Checkpoint) -> PredictionEvidence | None:
    # a link is judged by its own name: in a hub cache it leads to a file called by its hash
    name = checkpoint.path.name or checkpoint.path.resolve().name
    if V_NAME.search(name) and not EPS_NAME.search(name):
        return "v", True, "velocity prediction, zero terminal SNR: only the file's name says so"
    if FLOW_NAME.search(name):
        raise WeightsError(checkpoint.path, "a rectified-flow model by its name, which is not supported")
    return None


PREDICTION_SOURCES: tuple[Callable[[Checkpoint], PredictionEvidence | None], ...] = (
    _edm_marker,
    _marker,
    _metadata,
    _scheduler,
    _name,
)


def _missing(checkpoint: Checkpoint, family: str) -> Iterator[str]:
    """Components without a single tensor in the file."""
    if _find(checkpoint, VAE_INPUT) is None:
        yield "vae"
    for number, prefixes in enumerate(TEXT_PREFIXES[family]):
        if not any(key.startswith(prefixes) for key in checkpoint.tensors):
            yield f"text_encoder{'' if number == 0 else f'_{number + 1}'}"


TEXT_PREFIXES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "sdxl": (("conditioner.embedders.0.", "text_encoder."), ("conditioner.embedders.1.", "text_encoder_2.")),
    "sd15": (("cond_stage_model.", "text_encoder."),),
}


def _find(checkpoint: Checkpoint, keys: tuple[str, ...]) -> TensorRef | None:
    return next((checkpoint.tensors[key] for key in keys if key in checkpoint.tensors), None)
