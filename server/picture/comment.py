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

from pipelines.job import SEED_MODULUS, InitImage, Job, Pass, PreviousPass

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
    inputs = dict[str, str]()
    init = job.passes[0].init
    if isinstance(init, InitImage):
        inputs["picture"] = sha256(init.image.rgb).hexdigest()
        if init.mask is not None:
            inputs |= {"mask": sha256(init.mask).hexdigest(), "inpainting": inpainting}
    return {
        "version": naiad_version(),
        "model": source_hash,
        "files": dict(files or {}),
        "batching": batching,
        "job": _to_plain(_canonical_job(job)),
        "ladder": _to_plain(ladder),
        "inputs": inputs,
    }


def _canonical_job(job: Job) -> dict[str, object]:
    """A job in the metadata's own form, which stays as it is when the classes change. Images stay out."""
    first, *others = job.passes
    return {
        "model": job.model,
        "prompts": {
            "positive": job.prompts.positive,
            "negative": job.prompts.negative,
            "syntax": job.prompts.syntax,
            "drop_seams": job.prompts.drop_seam_tokens,
        },
        "width": first.width,
        "height": first.height,
        "steps": job.steps,
        "sampler": job.sampler,
        "schedule": job.schedule,
        "guidance": asdict(job.guidance),
        "seeds": first.seeds,
        "sigma_start": job.sigma_start,
        "brownian": job.brownian,
        "smea": first.smea,
        "deep_shrink": first.deep_shrink,
        "pyramid": first.pyramid,
        "source": _canonical_init(first),
        "enhance": _canonical_enhance(others[0]) if others else None,
    }


def _canonical_init(pass_: Pass) -> dict[str, object] | None:
    init = pass_.init
    if not isinstance(init, InitImage):
        return None
    return {
        "picture": None,
        "strength": pass_.strength,
        "noise": pass_.noise,
        "noise_seed": pass_.noise_seed,
        "mask": None,
        "overlay": init.overlay,
        "color_correct": init.color_correct,
    }


def _canonical_enhance(pass_: Pass) -> dict[str, object]:
    return {
        "width": pass_.width,
        "height": pass_.height,
        "strength": pass_.strength,
        "noise": pass_.noise,
        "seed": pass_.seeds[0],
        "noise_seed": pass_.noise_seed,
        "network": isinstance(pass_.init, PreviousPass) and pass_.init.network,
        "deep_shrink": pass_.deep_shrink,
        "pyramid": pass_.pyramid,
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
    pass_, guidance, flags = job.passes[-1], job.guidance, recorded or {}
    above = {"skip_cfg_above_sigma": float(guidance.skip_above)} if isfinite(guidance.skip_above) else {}
    return {
        "prompt": strip_unwritable(job.prompts.positive),
        "steps": job.steps,
        "height": pass_.height,
        "width": pass_.width,
        "scale": float(guidance.scale),
        "uncond_scale": float(guidance.uncond_scale),
        "cfg_rescale": float(guidance.rescale),
        "seed": pass_.seeds[index],
        # NAI's Enhance sends each image in a request of its own
        "n_samples": len(pass_.seeds) if len(job.passes) == 1 else 1,
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
        "sm": pass_.smea != "off",
        "sm_dyn": pass_.smea == "dyn",
        **above,
        "skip_cfg_below_sigma": float(guidance.skip_below),
        "lora_unet_weights": None,
        "lora_clip_weights": None,
        **_init_fields(pass_, index),
        **{key: flags[key] for key in sorted(flags, key=RECORDED.index)},
        "uc": strip_unwritable(job.prompts.negative),
        "request_type": _request_type(pass_),
        **({} if about is None else {"naiad": about}),
        "generator": generator_text(),
    }


def _request_type(pass_: Pass) -> str:
    if pass_.init is None:
        return "PromptGenerateRequest"
    return "Img2ImgRequest" if _mask_of(pass_) is None else "NativeInfillingRequest"


def _mask_of(pass_: Pass) -> bytes | None:
    return pass_.init.mask if isinstance(pass_.init, InitImage) else None


def _init_fields(pass_: Pass, index: int) -> dict[str, object]:
    """The fields of NAI's Comment about the init image."""
    init = pass_.init
    if init is None:
        return {}
    if isinstance(init, InitImage) and init.mask is not None:
        return {"add_original_image": init.overlay != "none"}
    return {
        "strength": float(pass_.strength),
        "noise": float(pass_.noise),
        "extra_noise_seed": (pass_.noise_seed + index) % SEED_MODULUS,
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


def _to_plain(value: object) -> object:
    """A value as JSON has it: lists for tuples, "inf" for what is without end."""
    if isinstance(value, dict):
        return {key: _to_plain(inner) for key, inner in cast("dict[str, object]", value).items()}
    if isinstance(value, list | tuple):
        return [_to_plain(inner) for inner in cast("Sequence[object]", value)]
    if isinstance(value, str):
        return strip_unwritable(value)
    return "inf" if value == inf else value
