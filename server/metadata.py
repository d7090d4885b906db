"""What a picture says about itself, in NAI's own keys, types and order, and that it is not NovelAI's.

`Software = NovelAI` names the format: readers compare it exactly. Who made the picture is said by `generator`
and by a Source hash of our own model's, never one of NAI's.
"""

import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from math import isfinite
from typing import cast

from PIL import Image

from pipelines.job import Job
from server.stealth import extract

NAI_HASHES = frozenset(
    {
        *("B0BDF6C1", "C1E1DE52", "7BCCAA2C", "1120E6A9", "8BA2AF87"),
        *("4BE8C60C", "C8704949", "37C2B166", "F306816B", "9CC2F394"),
    }
)
UNWRITABLE = re.compile("[\0\ud800-\udfff]")
"""NUL ends a text chunk early and a lone surrogate is no character at all."""


def generator() -> str:
    """Who made the picture."""
    return f"naiad {version('naiad')} (self-hosted, not NovelAI)"


def comment(job: Job, index: int) -> dict[str, object]:
    """The Comment of a job's picture `index`: NAI V3's keys in NAI's order (mid-2024), then our own."""
    guidance = job.guidance
    above = {"skip_cfg_above_sigma": float(guidance.skip_above)} if isfinite(guidance.skip_above) else {}
    return {
        "prompt": written(job.prompts.positive),
        "steps": job.steps,
        "height": job.height,
        "width": job.width,
        "scale": float(guidance.scale),
        "uncond_scale": float(guidance.uncond_scale),
        "cfg_rescale": float(guidance.rescale),
        "seed": job.seeds[index],
        "n_samples": len(job.seeds),
        "hide_debug_overlay": False,
        "noise_schedule": job.schedule,
        "legacy_v3_extend": job.prompts.drop_seams,
        "reference_information_extracted_multiple": [],
        "reference_strength_multiple": [],
        "sampler": job.sampler,
        "controlnet_strength": 1.0,
        "controlnet_model": None,
        "dynamic_thresholding": guidance.threshold is not None,
        "dynamic_thresholding_percentile": 0.999,
        "dynamic_thresholding_mimic_scale": 10.0,
        "sm": job.smea != "off",
        "sm_dyn": job.smea == "dyn",
        **above,
        "skip_cfg_below_sigma": float(guidance.skip_below),
        "lora_unet_weights": None,
        "lora_clip_weights": None,
        "uc": written(job.prompts.negative),
        "request_type": "PromptGenerateRequest",
        "generator": generator(),
    }


def text_fields(comment: Mapping[str, object], source_hash: str, seconds: float) -> dict[str, str]:
    """The text chunks in NAI's order.

    Raises:
        ValueError: no hash, or one of NAI's own, which no picture of ours may carry.
    """
    if not re.fullmatch("[0-9A-F]{8}", source_hash):
        raise ValueError(f"{source_hash!r} is not 8 upper-case hex digits")
    if source_hash in NAI_HASHES:
        raise ValueError(f"{source_hash} names a model of NovelAI's")
    return {
        "Title": "AI generated image",
        "Description": str(comment["prompt"]),
        "Software": "NovelAI",
        "Source": f"Stable Diffusion XL {source_hash}",
        "Generation time": str(seconds),
        "Comment": json.dumps(comment),
    }


def alpha_text(fields: Mapping[str, str]) -> str:
    """What goes into the alpha: the same fields but the title, the Comment still a string."""
    return json.dumps({key: value for key, value in fields.items() if key != "Title"})


def written(text: str) -> str:
    """A text as it can be written into a file."""
    return UNWRITABLE.sub("", text)


def read(picture: Image.Image) -> tuple[dict[str, str], dict[str, str] | None]:
    """Both layers of a picture: its text chunks, and the fields in its alpha if there are any."""
    import numpy as np

    chunks = {str(key): value for key, value in picture.info.items() if isinstance(value, str)}
    if picture.mode != "RGBA":
        return chunks, None
    return chunks, _fields(extract(np.asarray(picture)))


def _fields(text: str | None) -> dict[str, str] | None:
    """The fields in a text that a stranger may have written; None unless it is an object of strings."""
    try:
        found: object = json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    return {
        str(key): value
        for key, value in cast("dict[object, object]", found).items()
        if isinstance(value, str)
    }
