"""What a model's name says about its prediction: the weakest evidence, and for some kinds of model the only one.

Names are people's: `NoobRF`, `nyaflow` and `FlowMatching` are rectified flow, `dwarf`, `overflow` and `flower` are not.
"""

import re
from pathlib import Path

from pipelines.weights.checkpoint import Checkpoint
from pipelines.weights.claim import EDM, PLAYGROUND, RECTIFIED_FLOW, SUFFIX, X0, Claim, interpret

PLAYGROUND_NAME = re.compile(r"playground[-_. ]*v?[-_. ]*2[-_.]?5", re.IGNORECASE)
BIGASP_FLOW_NAME = re.compile(r"bigasp[-_ ]?v?2[-_.]?5", re.IGNORECASE)
EDM_V_NAME = re.compile(
    r"(?i:(?<![a-z])cos[-_ ]?xl)|(?<=[a-z])Cos[-_ ]?XL|(?i:(?<![a-z])edm[-_ ]?v([-_ ]?pred|(?![a-z0-9])))"
)
X0_NAME = re.compile(r"((?<![a-zA-Z0-9])[xX]|(?<=[a-z])X)0(?=(?i:[-_ ]?pred|v\d)|[^a-zA-Z0-9.]|\.(?!\d)|$)")
V_NAME = re.compile(
    r"v[-_ ]?pred(?!at|ec|om)|v[-_ ]?parameteri|velocity[-_ ]?pred|v[-_ ]?zt?snr", re.IGNORECASE
)
ZSNR_NAME = re.compile(r"zt?snr|(zero|terminal)[-_ ]?(terminal)?[-_ ]?snr", re.IGNORECASE)
EPS_NAME = re.compile(r"(?<![a-z])eps(?![a-z])|(eps|epsilon|noise)[-_ ]?pred", re.IGNORECASE)
EPSILON = re.compile("epsilon", re.IGNORECASE)
"""Also a version behind delta: no evidence, but a reason to doubt a `vpred` in the same name (`vpred-to-epsilon`)."""

XL = re.compile(r"(SD|sd|Sd)?(XL|xl|Xl)(?![a-z])")
VERSION = re.compile(r"(?=[vV]\d)")
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
FLOW_WORD = re.compile(r"rf|fm|rectflow|(rectified|flowmatch|flowpred)\w*|\w*flow")
FLOW_PREFIXES = (
    "over under air work out in back cash data lava water wind river cross counter down up through blood stackover "
    "hair ink light tensor free"
)
FLOW_COMPOUNDS = {f"{prefix}flow" for prefix in FLOW_PREFIXES.split()}
"""Words that end in `flow` and name no kind of training; any other word with this end does."""
BASES = "noob|noobai|nai|xl|sdxl|sd|il|illu|pony|anime|wai|animagine|bigasp"
GLUED_RF = re.compile(rf"[a-z]{{2,}}[b-df-hj-np-tv-z]rf|({BASES})(rf|fm)")
"""`rf` behind a consonant ends no English word; behind a vowel (dwarf, serf, surf) it counts after base models only."""

HUB_SNAPSHOT = re.compile(r"[0-9a-f]{40}")
COMPONENT_NAME = re.compile(r"(diffusion_pytorch_model|model)\b.*\.safetensors")


def read_name(checkpoint: Checkpoint) -> Claim | None:
    """Return what the name of the file or folder says, or else its title and its output name in the metadata."""
    claim = interpret_name(find_name(checkpoint.path), "only the file's name indicates it")
    for key in ("modelspec.title", "ss_output_name"):
        if claim is None and key in checkpoint.metadata:
            title = checkpoint.metadata[key][:200]
            claim = interpret_name(title, f"only metadata {key}, {title!r}, indicates it")
    return claim


def find_name(path: Path) -> str:
    """Return the name that people gave a model: for `unet/` and a snapshot in a hub's cache, that of a folder above.

    A link's own name counts: in a hub's cache it points to a file that is named by its hash.
    """
    path = path.absolute()
    if path.parent.name == "unet" and COMPONENT_NAME.fullmatch(path.name):
        path = path.parent
    if path.name == "unet":
        path = path.parent
    if path.parent.name == "snapshots" and HUB_SNAPSHOT.fullmatch(path.name):
        path = path.parent.parent
    return path.name or path.resolve().name


def interpret_name(name: str, source: str) -> Claim | None:
    """Return what a model's name says about its prediction; None if nothing, or both noise and velocity."""
    words = _split(name)
    if PLAYGROUND_NAME.search(name):
        return Claim(source, unsupported=PLAYGROUND)
    if EDM_V_NAME.search(name):
        return Claim(source, "edm_v")
    if X0_NAME.search(name):
        return Claim(source, unsupported=X0)
    if BIGASP_FLOW_NAME.search(name) or _names_flow(words):
        return Claim(source, unsupported=RECTIFIED_FLOW)
    if "edm" in words:
        return Claim(source, unsupported=EDM)
    zsnr = True if ZSNR_NAME.search(name) else None
    if V_NAME.search(name) or zsnr:
        return None if EPS_NAME.search(name) or EPSILON.search(name) else Claim(source, "v", zsnr)
    return Claim(source, "eps") if EPS_NAME.search(name) else _find_unknown(words, source)


def _split(name: str) -> list[str]:
    """The words of a name, in lower case: apart by separators, capitals, digits, `XL` or the `v` of a version."""
    return [word.lower() for word in WORD.findall(VERSION.sub("_", XL.sub("_", name)))]


def _names_flow(words: list[str]) -> bool:
    for previous, word in zip(["", *words], words, strict=False):
        is_compound = word in FLOW_COMPOUNDS or (word == "flow" and previous + word in FLOW_COMPOUNDS)
        if not is_compound and (FLOW_WORD.fullmatch(word) or GLUED_RF.fullmatch(word)):
            return True
    return False


def _find_unknown(words: list[str], source: str) -> Claim | None:
    """The claim of a word before `pred`, in one word with it or apart."""
    for previous, word in zip(["", *words], words, strict=False):
        kind = SUFFIX.sub("", word)
        if word in ("pred", "prediction", "parameterization"):
            return interpret(previous or word, source)
        if kind != word and word.endswith(("pred", "prediction", "parameterization")):
            return interpret(kind, source)
    return None
