"""The metadata fields of an image, with the keys, types and order of NAI's.

`Software = NovelAI` is the name of the format; readers compare it exactly. The actual origin is in `generator` and in
`Source`, which holds the hash of this server's model and never one of NAI's. All keys: reference, metadata, 1.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from math import inf, isfinite
from typing import cast

from pipelines.job import SEED_MODULUS, Job, RgbImage, second_pass

NAI_HASHES = frozenset(
    {
        *("B0BDF6C1", "C1E1DE52", "7BCCAA2C", "1120E6A9", "8BA2AF87"),
        *("4BE8C60C", "C8704949", "37C2B166", "F306816B", "9CC2F394"),
    }
)
"""The `Source` hashes of NAI's V3 models: anime, then furry."""
RECORDED = ("legacy", "deliberate_euler_ancestral_bug", "prefer_brownian")
"""NAI's flags that are recorded as the request was read, in NAI's order.

`legacy` and `deliberate_euler_ancestral_bug` change nothing. `prefer_brownian` selects the noise (`Job.brownian`).
"""
UNWRITABLE = re.compile("[\0\ud800-\udfff]")
"""NUL ends a text chunk early; a lone surrogate cannot be encoded."""


@cache  # reads the package metadata from disk
def naiad_version() -> str:
    """Return the installed version of naiad."""
    return version("naiad")


def software_name() -> str:
    """Return the name and version of this program."""
    return f"naiad {naiad_version()}"


def generator_text() -> str:
    """Return the text of `generator`: this program, and that it is not NovelAI."""
    return f"{software_name()} (self-hosted, not NovelAI)"


def describe_job(
    job: Job,
    ladder: Sequence[float],
    batching: str,
    source_hash: str,
    inpainting: str = "blend",
    files: Mapping[str, str] | None = None,
) -> dict[str, object]:
    """The Comment's `naiad` object: all that is needed to draw the picture again, as plain JSON values.

    Pictures it was drawn from are told by their hashes, how a part of one was drawn anew by `inpainting`, and weights
    from beside the model by the hashes of their `files`.
    """
    told, inputs = asdict(job), dict[str, str]()
    told["prompts"]["drop_seams"] = told["prompts"].pop("drop_seam_tokens")
    if job.source is not None:
        told["source"] |= {"picture": None, "mask": None}
        inputs["picture"] = sha256(job.source.picture.rgb).hexdigest()
        if job.source.mask is not None:
            inputs |= {"mask": sha256(job.source.mask).hexdigest(), "inpainting": inpainting}
    return {
        "version": naiad_version(),
        "model": source_hash,
        "files": dict(files or {}),
        "batching": batching,
        "job": _plain(told),
        "ladder": _plain(ladder),
        "inputs": inputs,
    }


def build_comment(
    job: Job,
    index: int,
    recorded: Mapping[str, bool] | None = None,
    about: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """The Comment of a job's picture `index`: NAI V3's keys in NAI's order (mid-2024), then our own.

    Args:
        job: what was drawn; with a second pass the Comment is that pass's, as after NAI's Enhance.
        index: which of its pictures.
        recorded: NAI's flags that are only echoed; any of RECORDED.
        about: the `naiad` object, if the picture is to carry one.
    """
    job, index = last_pass(job, index)
    guidance, flags = job.guidance, recorded or {}
    above = {"skip_cfg_above_sigma": float(guidance.skip_above)} if isfinite(guidance.skip_above) else {}
    return {
        "prompt": strip_unwritable(job.prompts.positive),
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
        "legacy_v3_extend": job.prompts.drop_seam_tokens,
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
        **_started(job, index),
        **{key: flags[key] for key in sorted(flags, key=RECORDED.index)},
        "uc": strip_unwritable(job.prompts.negative),
        "request_type": _request_type(job),
        **({} if about is None else {"naiad": about}),
        "generator": generator_text(),
    }


def last_pass(job: Job, index: int) -> tuple[Job, int]:
    """The job that finishes a picture, without the picture it starts from, and which of its pictures that is."""
    if job.enhance is None:
        return job, index
    return second_pass(job, job.enhance, index, RgbImage(0, 0, b"")), 0


def _request_type(job: Job) -> str:
    if job.source is None:
        return "PromptGenerateRequest"
    return "Img2ImgRequest" if job.source.mask is None else "NativeInfillingRequest"


def _started(job: Job, index: int) -> dict[str, object]:
    """What NAI's Comment says of the picture that was started from."""
    source = job.source
    if source is None:
        return {}
    if source.mask is not None:
        return {"add_original_image": source.overlay != "none"}
    seed = (source.noise_seed + index) % SEED_MODULUS
    return {
        "strength": float(source.strength),
        "noise": float(source.noise),
        "extra_noise_seed": seed,
        "legacy": False,
    }


def build_text_fields(
    comment: Mapping[str, object], source_hash: str, seconds: float, public_key: str | None = None
) -> dict[str, str]:
    """Return the text fields in NAI's order, followed by naiad's own.

    Args:
        comment: the Comment, with its signature if it has one.
        source_hash: 8 upper-case hex digits that identify the model.
        seconds: run time of the job.
        public_key: the key that signed the Comment, or None. `Software` is NovelAI only if there is one: in an
            unsigned file the `generator` could be edited out unnoticed.

    Raises:
        ValueError: `source_hash` is malformed or one of NAI's, or the Comment has a number that JSON does not allow.
    """
    if not re.fullmatch("[0-9A-F]{8}", source_hash):
        raise ValueError(f"{source_hash!r} is not 8 upper-case hex digits")
    if source_hash in NAI_HASHES:
        raise ValueError(f"{source_hash} is the hash of a NovelAI model")
    return {
        "Title": "AI generated image",
        "Description": str(comment["prompt"]),
        "Software": software_name() if public_key is None else "NovelAI",
        "Source": f"Stable Diffusion XL {source_hash}",
        "Generation time": str(seconds),
        "Comment": json.dumps(comment, allow_nan=False),
        "Generator": generator_text(),
        **({} if public_key is None else {"Signature key": public_key}),
    }


def build_alpha_text(fields: Mapping[str, str]) -> str:
    """Return the JSON text for the alpha layer: all fields except the title, the Comment as a string."""
    return json.dumps({key: value for key, value in fields.items() if key != "Title"})


def strip_unwritable(text: str) -> str:
    """Return the text without NUL and lone surrogates, which metadata cannot hold."""
    return UNWRITABLE.sub("", text)


def _plain(value: object) -> object:
    """A value as JSON has it: lists for tuples, "inf" for what is without end."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in cast("dict[str, object]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in cast("Sequence[object]", value)]
    if isinstance(value, str):
        return strip_unwritable(value)
    return "inf" if value == inf else value
