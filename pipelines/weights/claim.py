"""Claims about what a network predicts, and the words that trainers, applications and people make them with.

A claim is only as good as its source, so each names it. Words that speak of a prediction that cannot run, or that no
table here lists, make a claim too: without it such a file would count as one that says nothing, and run as eps.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.errors import WeightsError
from pipelines.types import PredictionType

TITLES: Mapping[PredictionType, str] = {
    "eps": "noise prediction",
    "v": "velocity prediction",
    "edm_v": "EDM velocity prediction",
}
RECTIFIED_FLOW, X0 = "a rectified-flow model", "a model that predicts x0"
EDM, PLAYGROUND = (
    "an EDM model of another scaling than CosXL's",
    "Playground v2.5, an EDM model with scaled latents",
)
UNKNOWN = "a model of an unknown prediction"
OVERRIDE = "set its `prediction` to eps, v or edm_v in the catalog or with --prediction"

SEPARATORS = re.compile(r"[\W_]+")
SUFFIX = re.compile(r"(?<=.)(prediction|predict|pred|parameteri[sz]ation|param)$")
"""What stands behind the name of a prediction: `v_prediction` and `v` are the same."""
WORDS: Mapping[str, tuple[PredictionType, bool | None]] = {
    **dict.fromkeys(("eps", "epsilon", "noise", "n"), ("eps", None)),
    **dict.fromkeys(("v", "velocity"), ("v", None)),
    **dict.fromkeys(("vzsnr", "vztsnr", "vzeroterminalsnr", "vpredzsnr", "vpredztsnr"), ("v", True)),
    **dict.fromkeys(("vpredictionzsnr", "vpredictionztsnr"), ("v", True)),
    **dict.fromkeys(("edmv", "vedm", "vpredictionedm", "edmvelocity", "cosxl"), ("edm_v", None)),
}
"""Predictions that can run, without separators and suffix, and the terminal SNR if the word includes it."""
UNSUPPORTED_WORDS: Mapping[str, str] = {
    **dict.fromkeys(("flow", "rf", "fm", "flowmatch", "flowmatching", "rectifiedflow"), RECTIFIED_FLOW),
    **dict.fromkeys(("rectified", "reflow", "flux", "sd3", "trigflow", "flowvelocity"), RECTIFIED_FLOW),
    **dict.fromkeys(("x0", "x", "xstart", "sample", "originalsample", "image", "img", "start"), X0),
    **dict.fromkeys(("edm", "edmeps", "edmepsilon"), EDM),
    "playground": PLAYGROUND,
}
TRUE, FALSE = {"true", "1", "yes", "on", ""}, {"false", "0", "no", "off", "none", "null"}
UNSTATED = {"", "none", "null", "unknown", "auto", "default", "ddpm"}
"""Values that leave the prediction open; `ddpm` is a noise process."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one source says: a prediction, only the terminal SNR, or a kind of model that cannot run."""

    source: str  # as the end of a sentence
    prediction: PredictionType | None = None
    zsnr: bool | None = None
    unsupported: str | None = None

    def __str__(self) -> str:
        """Return the claim as a sentence."""
        kinds = [self.unsupported or (self.prediction and TITLES[self.prediction])]
        kinds += ["zero terminal SNR"] if self.zsnr else []
        return f"{', '.join(kind for kind in kinds if kind)}: {self.source}"


def interpret(value: object, source: str) -> Claim | None:
    """Return what a word says about the prediction; None if it leaves it open."""
    word = SEPARATORS.sub("", str(value).rpartition(".")[2].lower())
    if word in UNSTATED:
        return None
    for spelling in (word, SUFFIX.sub("", word)):
        if spelling in WORDS:
            prediction, zsnr = WORDS[spelling]
            return Claim(source, prediction, zsnr)
        if spelling in UNSUPPORTED_WORDS:
            return Claim(source, unsupported=UNSUPPORTED_WORDS[spelling])
    return Claim(source, unsupported=UNKNOWN)


def parse_flag(value: object) -> bool | None:
    """Return a boolean as metadata and configs spell it, None for any other value."""
    text = str(value).strip().lower()
    return True if text in TRUE else False if text in FALSE else None


def agree(path: Path, claims: Iterable[Claim]) -> Claim | None:
    """Return the prediction that sources of one rank claim, None if they claim none; raise WeightsError if they differ.

    Only velocity prediction has zero terminal SNR, so a source that claims only that claims velocity too.
    """
    agreed: Claim | None = None
    for claim in claims:
        if claim.prediction is None and claim.unsupported is None:
            if not claim.zsnr:
                continue
            claim = replace(claim, prediction="v")
        if agreed is None:
            agreed = claim
        elif (agreed.prediction, agreed.unsupported) != (claim.prediction, claim.unsupported):
            raise WeightsError(path, f"contradictory: {agreed}, but {claim}; {OVERRIDE}")
    return agreed


def refuse(path: Path, claim: Claim) -> WeightsError:
    """Return the error for a claim of a kind of model that cannot run."""
    reason = f"{claim.unsupported}, which is not supported: {claim.source}"
    return WeightsError(path, f"{reason}; if that is wrong, {OVERRIDE}")
