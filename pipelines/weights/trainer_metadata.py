"""What the metadata of a safetensors file says about the prediction.

ModelSpec's key and ComfyUI's own hold a word; sd-scripts and others write flags, OneTrainer its config as JSON. Keys
are compared without the prefix of who wrote them. `ss_v2` is not read: it means Stable Diffusion 2.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import cast

from pipelines.weights.claim import RECTIFIED_FLOW, UNKNOWN, Claim, interpret, parse_flag

PREFIX = re.compile(r"^.*\.|^(ss|ot|is|use|model|training)_")
STATEMENTS = {
    *("prediction_type", "predict_key", "pred_type", "prediction", "prediction_target", "parameterization"),
    "noise_process",
}
"""Keys whose value is a word for the prediction."""
V_FLAGS = {"v_parameterization", "v_param", "v_pred", "vpred", "v_prediction", "velocity_prediction"}
ZSNR_FLAGS = {
    *("zero_terminal_snr", "ztsnr", "zsnr", "zero_snr", "rescale_betas_zero_snr", "v_zsnr", "vzsnr"),
    "rescale_noise_scheduler_to_zero_terminal_snr",
}
FLOW_FLAGS = {"flow_model", "flow_matching", "flow_match", "rectified_flow", "flow_prediction", "flow_sigmas"}
FORCED = {"force_v_prediction": "v", "force_epsilon_prediction": "eps"}
"""OneTrainer's flags; one that is off leaves the prediction as it was."""
GRAPHS = re.compile(r"^(prompt|workflow)$|tag|dataset|bucket|caption|recipe|merge|^naiad")
"""Keys of JSON that does not describe the network: ComfyUI's graphs, training data, the sources of a merge."""
MAX_TEXT, MAX_DEPTH, MAX_KEY = 1 << 20, 8, 100


def read_metadata(metadata: Mapping[str, str]) -> Iterator[Claim]:
    """Yield every claim in a file's metadata."""
    for key, value in metadata.items():
        yield from _read_entry(key, value, f"metadata {key}")
        if value.startswith("{") and len(value) <= MAX_TEXT and not GRAPHS.search(key):
            yield from _read_json(value, f"metadata {key}")


def _read_json(text: str, source: str) -> Iterator[Claim]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return
    yield from _read_object(fields, source, MAX_DEPTH)


def _read_object(fields: object, source: str, depth: int) -> Iterator[Claim]:
    if not isinstance(fields, dict) or depth == 0:
        return
    for key, value in cast("dict[str, object]", fields).items():
        yield from _read_entry(key, value, f"{source}: {key}")
        yield from _read_object(value, source, depth - 1)


def _read_entry(key: str, value: object, source: str) -> Iterator[Claim]:
    if value is None or isinstance(value, dict | list) or len(key) > MAX_KEY:
        return
    name = key.lower().replace("-", "_").replace(" ", "_")
    while PREFIX.search(name):
        name = PREFIX.sub("", name)
    text = str(value)[:80]
    source = f"{source} is {repr(text) if parse_flag(text) is None else text}"
    claim = interpret(value, source) if name in STATEMENTS else _read_flag(name, value, source)
    if claim is not None:
        yield claim


def _read_flag(name: str, value: object, source: str) -> Claim | None:
    is_on = parse_flag(value)
    if name in FORCED:
        return interpret(FORCED[name], source) if is_on else None
    if name not in V_FLAGS | ZSNR_FLAGS | FLOW_FLAGS:
        return None
    if is_on is None:
        return Claim(source, unsupported=UNKNOWN)
    if name in FLOW_FLAGS:
        return Claim(source, unsupported=RECTIFIED_FLOW) if is_on else None
    if name in ZSNR_FLAGS:
        return Claim(source, zsnr=is_on)
    return Claim(source, "v" if is_on else "eps")
