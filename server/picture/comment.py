"""What a picture says about itself, in NAI's own keys, types and order, and that it is not NovelAI's.

`Software = NovelAI` names the format: readers compare it exactly. Who made the picture is said by `generator`
and by a Source hash of our own model's, never one of NAI's. Every key and its place: reference, metadata, 1.
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
RECORDED = ("legacy", "deliberate_euler_ancestral_bug", "prefer_brownian")
"""NAI's flags that change nothing in a job but are echoed, in NAI's order; the first is a task's."""
UNWRITABLE = re.compile("[\0\ud800-\udfff]")
"""NUL ends a text chunk early and a lone surrogate is no character at all."""


@cache  # it is looked up on disk
def naiad_version() -> str:
    """The version of naiad that is installed."""
    return version("naiad")


def software_name() -> str:
    """The program and its version."""
    return f"naiad {naiad_version()}"


def generator_text() -> str:
    """Who made the picture."""
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
    """The text chunks in NAI's order, then our own.

    Args:
        comment: the Comment, with its signature if it has one.
        source_hash: 8 upper-case hex digits of the model.
        seconds: how long the drawing took.
        public_key: whose signature the Comment carries. Without one the picture does not call itself NovelAI's
            format, since it could then be edited until it no longer says who made it.

    Raises:
        ValueError: no hash, one of NAI's own, which no picture of ours may carry, or a number JSON has not.
    """
    if not re.fullmatch("[0-9A-F]{8}", source_hash):
        raise ValueError(f"{source_hash!r} is not 8 upper-case hex digits")
    if source_hash in NAI_HASHES:
        raise ValueError(f"{source_hash} names a model of NovelAI's")
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
    """What goes into the alpha: the same fields but the title, the Comment still a string."""
    return json.dumps({key: value for key, value in fields.items() if key != "Title"})


def strip_unwritable(text: str) -> str:
    """A text as it can be written into a file."""
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
