"""What a checkpoint is, told from its header, its metadata and its name, with the evidence in words.

No tensor is read: the markers of v-prediction are empty tensors whose key alone speaks.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

from pipelines.architecture import METADATA_KEY, Architecture, Family
from pipelines.checkpoint import Checkpoint, open_checkpoint
from pipelines.errors import UnknownName, WeightsError
from pipelines.strangers import refuse_shape, refuse_stranger

Kind = Literal["eps", "v", "edm_v"]

VPRED_NAME = re.compile(r"v[-_ ]?pred", re.IGNORECASE)
EPS_NAME = re.compile(r"(?<![a-z])eps(?![a-z])|epsilon", re.IGNORECASE)
FLOW_NAME = re.compile(
    r"rectified|flow[-_ ]?match|bigasp[-_ ]?v?2[-_.]?5|(?<![a-z])(?:rf|fm|flow)(?![a-z])", re.IGNORECASE
)
VAE_KEYS = ("first_stage_model.", "vae.")
TEXT_KEYS = {
    "sdxl": (("conditioner.embedders.0.", "text_encoder."), ("conditioner.embedders.1.", "text_encoder_2.")),
    "sd15": (("cond_stage_model.", "text_encoder."),),
}


@dataclass(frozen=True, slots=True)
class Identity:
    """What was found: `missing` names what the file lacks, `evidence` says in sentences what decided the rest.

    `architecture` is set only when the file carries its own; else the family's constants hold.
    """

    family: Family
    layout: Literal["single", "diffusers"]
    channels: int
    prediction: Kind
    zsnr: bool
    missing: tuple[str, ...]
    evidence: tuple[str, ...]
    architecture: Architecture | None = None


class Verdict(NamedTuple):
    """What one witness says of the prediction; `zsnr` is None where it says nothing of that."""

    prediction: Kind
    zsnr: bool | None
    because: str


class Shape(NamedTuple):
    """The features of a UNet that tell the families apart, in either naming of its keys."""

    channels: int
    width: int
    context: int
    labels: int
    deep: bool


def identify(path: Path, *, prediction: str | None = None, zsnr: bool | None = None) -> Identity:
    """Tell family, prediction and missing parts of a checkpoint; `prediction` and `zsnr` overrule what it says.

    WeightsError names a file that cannot serve and why.
    """
    return identify_checkpoint(open_checkpoint(path), prediction=prediction, zsnr=zsnr)


def identify_checkpoint(
    checkpoint: Checkpoint, *, prediction: str | None = None, zsnr: bool | None = None
) -> Identity:
    """`identify`, for a checkpoint whose headers have been read."""
    architecture = _own_architecture(checkpoint)
    shape = _unet_shape(checkpoint)
    family, why = _family(checkpoint, architecture, shape)
    verdict = _prediction(checkpoint, prediction)
    zero, because = _zero_snr(checkpoint, family, verdict, zsnr)
    return Identity(
        family,
        checkpoint.layout,
        shape.channels,
        verdict.prediction,
        zero,
        _missing(checkpoint, family),
        (why, verdict.because, because),
        architecture,
    )


def _own_architecture(checkpoint: Checkpoint) -> Architecture | None:
    text = checkpoint.metadata.get(METADATA_KEY)
    try:
        return Architecture.from_json(text) if text is not None else None
    except ValueError as error:
        raise WeightsError(checkpoint.path, str(error)) from error


def _unet_shape(checkpoint: Checkpoint) -> Shape:
    refuse_stranger(checkpoint)
    ldm = _prefix(checkpoint, ("model.diffusion_model.", ""), "input_blocks.0.0.weight")
    if ldm is not None:
        return _measure(checkpoint, ldm, "input_blocks.0.0", "label_emb.0.0", "middle_block.1")
    plain = _prefix(checkpoint, ("unet.", ""), "conv_in.weight")
    if plain is not None:
        return _measure(checkpoint, plain, "conv_in", "add_embedding.linear_1", "mid_block.attentions.0")
    raise WeightsError(checkpoint.path, "no UNet in it that is known here (neither SDXL nor SD 1.x)")


def _prefix(checkpoint: Checkpoint, prefixes: Iterable[str], key: str) -> str | None:
    return next((prefix for prefix in prefixes if len(_dims(checkpoint, prefix + key)) == 4), None)


def _dims(checkpoint: Checkpoint, key: str) -> tuple[int, ...]:
    located = checkpoint.tensors.get(key)
    return located.shape if located else ()


def _measure(checkpoint: Checkpoint, prefix: str, first: str, label: str, middle: str) -> Shape:
    width, channels = _dims(checkpoint, f"{prefix}{first}.weight")[:2]
    labels = _dims(checkpoint, f"{prefix}{label}.weight")
    contexts = (
        located.shape[-1]
        for key, located in checkpoint.tensors.items()
        if key.startswith(prefix) and key.endswith("attn2.to_k.weight") and located.shape
    )
    deep = f"{prefix}{middle}.transformer_blocks.9.norm1.weight" in checkpoint.tensors
    return Shape(channels, width, next(contexts, 0), labels[-1] if labels else 0, deep)


def _family(checkpoint: Checkpoint, own: Architecture | None, shape: Shape) -> tuple[Family, str]:
    if own:
        return own.family, f"{own.family}-shaped: the metadata key {METADATA_KEY} describes it"
    refuse_shape(checkpoint, shape)
    reads = f"cross-attention reads {shape.context} features"
    if shape.context == 2048 and shape.labels == 2816:
        return "sdxl", f"SDXL: {reads} and the UNet takes a 2816-wide size and style vector"
    if shape.context == 768 and not shape.labels:
        return "sd15", f"SD 1.x: {reads}"
    raise WeightsError(checkpoint.path, f"an unknown family of UNet ({reads}, {shape.labels} of labels)")


def _missing(checkpoint: Checkpoint, family: Family) -> tuple[str, ...]:
    def has(prefixes: tuple[str, ...]) -> bool:
        return any(key.startswith(prefixes) for key in checkpoint.tensors)

    vae = () if has(VAE_KEYS) else ("vae",)
    texts = () if all(has(prefixes) for prefixes in TEXT_KEYS[family]) else ("text encoders",)
    return (*texts, *vae)


def _prediction(checkpoint: Checkpoint, override: str | None) -> Verdict:
    if "edm_mean" in checkpoint.tensors:
        raise WeightsError(checkpoint.path, "a Playground v2.5 EDM model (edm_mean), which is not supported")
    if override is not None:
        if override not in get_args(Kind):
            raise UnknownName("prediction", override, get_args(Kind))
        return Verdict(cast("Kind", override), None, f"{override}: the settings say so")
    verdicts = (witness(checkpoint) for witness in WITNESSES)
    return next(verdict for verdict in verdicts if verdict)


def _by_marker(checkpoint: Checkpoint) -> Verdict | None:
    if "edm_vpred.sigma_max" in checkpoint.tensors:
        return Verdict("edm_v", False, "edm_v: the file carries the tensor edm_vpred.sigma_max")
    if "v_pred" in checkpoint.tensors:
        return Verdict("v", "ztsnr" in checkpoint.tensors, "v: the file carries the tensor v_pred")
    return None


def _by_metadata(checkpoint: Checkpoint) -> Verdict | None:
    """`modelspec.prediction_type` is ModelSpec's, `predict_key` ComfyUI's; `ss_v2` means SD 2 and is no witness."""
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        said = checkpoint.metadata.get(key, "").lower()
        if said in {"v", "v_prediction", "v-zsnr"}:
            return Verdict("v", _metadata_zsnr(checkpoint, said), f"v: the metadata key {key} is {said!r}")
        if said in {"epsilon", "eps"}:
            return Verdict("eps", False, f"eps: the metadata key {key} is {said!r}")
    return None


def _metadata_zsnr(checkpoint: Checkpoint, said: str) -> bool | None:
    if said == "v-zsnr":
        return True
    return {"True": True, "False": False}.get(checkpoint.metadata.get("ss_zero_terminal_snr", ""))


def _by_scheduler(checkpoint: Checkpoint) -> Verdict | None:
    """Only what departs from the default counts: every folder begins with a copied `epsilon`."""
    name = str(checkpoint.scheduler.get("_class_name", ""))
    said = checkpoint.scheduler.get("prediction_type", "epsilon")
    if "FlowMatch" in name or said in {"flow_prediction", "sample"}:
        reason = f"scheduler_config.json asks for {name or said}, which is not supported"
        raise WeightsError(checkpoint.path, reason)
    if said != "v_prediction":
        return None
    if name.startswith("EDM"):
        return Verdict("edm_v", False, f"edm_v: scheduler_config.json names {name}")
    zsnr = bool(checkpoint.scheduler.get("rescale_betas_zero_snr", False))
    return Verdict("v", zsnr, "v: scheduler_config.json says v_prediction")


def _by_name(checkpoint: Checkpoint) -> Verdict | None:
    name = checkpoint.path.resolve().name if checkpoint.layout == "diffusers" else checkpoint.path.stem
    if VPRED_NAME.search(name) and not EPS_NAME.search(name):
        return Verdict("v", None, "v: the file's name says so")
    if FLOW_NAME.search(name):
        reason = "a rectified-flow model by its name, which is not supported; if it is none, set `prediction`"
        raise WeightsError(checkpoint.path, reason)
    return None


def _by_default(checkpoint: Checkpoint) -> Verdict:
    schedule = " and scheduler_config.json" if checkpoint.scheduler else ""
    return Verdict("eps", False, f"eps: no marker, no metadata{schedule} and no name says otherwise")


Witness = Callable[[Checkpoint], Verdict | None]
WITNESSES: tuple[Witness, ...] = (_by_marker, _by_metadata, _by_scheduler, _by_name, _by_default)


def _zero_snr(
    checkpoint: Checkpoint, family: Family, verdict: Verdict, override: bool | None
) -> tuple[bool, str]:
    zsnr, why = _zero_snr_said(checkpoint, family, verdict, override)
    if zsnr and verdict.prediction != "v":
        reason = f"zero terminal SNR needs v-prediction, but {verdict.because}; {why}"
        raise WeightsError(checkpoint.path, reason)
    return zsnr, f"{'zero' if zsnr else 'plain'} terminal SNR: {why}"


def _zero_snr_said(
    checkpoint: Checkpoint, family: Family, verdict: Verdict, override: bool | None
) -> tuple[bool, str]:
    if override is not None:
        return override, "the settings say so"
    if "ztsnr" in checkpoint.tensors and verdict.prediction != "edm_v":
        return True, "the file carries the tensor ztsnr"
    if verdict.zsnr is not None:
        return verdict.zsnr, "as its prediction was found"
    if verdict.prediction == "v" and family == "sdxl":
        return True, "the rule for SDXL v-prediction models that do not say"
    return False, "nothing asks for zero"
