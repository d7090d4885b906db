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

from pipelines.job import (
    SEED_MODULUS,
    Character,
    Control,
    EncodedVibe,
    Guidance,
    InitImage,
    Job,
    Lora,
    Pass,
    PreviousPass,
    Prompts,
    RgbImage,
    Vibe,
)

NAI_HASHES = {
    *("B0BDF6C1", "C1E1DE52", "7BCCAA2C", "1120E6A9", "8BA2AF87"),
    *("4BE8C60C", "C8704949", "37C2B166", "F306816B", "9CC2F394"),
}
"""The `Source` hashes of NAI's V3 models: anime, then furry."""
RECORDED = ("legacy", "deliberate_euler_ancestral_bug", "prefer_brownian")
"""NAI's flags that are recorded as the request was read, in NAI's order.

`legacy` and `deliberate_euler_ancestral_bug` change nothing. `prefer_brownian` selects the noise (`Job.brownian`).
"""
GENERATED, AUGMENTED = "AI generated image", "AI augmented image"
"""Titles of generated pictures, and of those that NAI's director tools make from another picture."""
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
    lossy: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Return the Comment's `naiad` object: everything needed to generate the image again, as plain JSON values.

    Source images are recorded by SHA-256, the inpainting method by name, auxiliary weights (`files`) by fingerprint.
    `speed` has the settings for speed that change pictures (`lossy`), if there are any, and `encoded` the texts that
    were encoded, if they are not those of the Comment.
    """
    inputs = dict[str, object]()
    init = job.passes[0].init
    if isinstance(init, InitImage):
        inputs["picture"] = sha256(init.image.rgb).hexdigest()
        if init.mask is not None:
            inputs |= {"mask": sha256(init.mask).hexdigest(), "inpainting": inpainting}
    if job.vibes:
        inputs["vibes"] = [_hash_source(vibe.source) for vibe in job.vibes]
    if job.controls:
        inputs["controls"] = [_hash_source(control.image) for control in job.controls]
    return {
        "version": naiad_version(),
        "model": source_hash,
        "files": dict(files or {}),
        "batching": batching,
        **({"speed": dict(lossy)} if lossy else {}),
        "job": _to_plain(_canonical_job(job)),
        "ladder": ["inf" if sigma == inf else sigma for sigma in ladder],
        "inputs": inputs,
        **({} if job.prompts.written is None else {"encoded": _to_plain(_list_encoded(job.prompts))}),
    }


def _list_encoded(prompts: Prompts) -> dict[str, object]:
    characters = [
        {"prompt": character.positive, "negative_prompt": character.negative}
        for character in prompts.characters
    ]
    return {"prompt": prompts.positive, "negative_prompt": prompts.negative, "characters": characters}


def _hash_source(source: RgbImage | EncodedVibe) -> str:
    return sha256(source.rgb if isinstance(source, RgbImage) else source.values).hexdigest()


def _canonical_job(job: Job) -> dict[str, object]:
    """A job in the metadata's own form, which stays as it is when the classes change. Images stay out."""
    first, *others = job.passes
    return {
        "model": job.model,
        "prompts": _canonical_prompts(job.prompts),
        "width": first.width,
        "height": first.height,
        "steps": job.steps,
        "sampler": job.sampler,
        "schedule": job.schedule,
        "guidance": _canonical_guidance(job.guidance),
        "seeds": first.seeds,
        "sigma_start": job.sigma_start,
        "brownian": job.brownian,
        "smea": first.smea,
        "deep_shrink": first.deep_shrink,
        "pyramid": first.pyramid,
        "source": _canonical_init(first),
        "enhance": _canonical_enhance(others[0]) if others else None,
        **({"loras": [_canonical_lora(lora) for lora in job.loras]} if job.loras else {}),
        **({"vibes": [_canonical_vibe(vibe) for vibe in job.vibes]} if job.vibes else {}),
        **({"controls": [_canonical_control(control) for control in job.controls]} if job.controls else {}),
    }


def _canonical_control(control: Control) -> dict[str, object]:
    return {
        "name": control.name,
        "hash": control.fingerprint,
        "strength": control.strength,
        "start": control.start,
        "end": control.end,
        "mode": control.mode,
    }


def _canonical_guidance(guidance: Guidance) -> dict[str, object]:
    values = asdict(guidance)
    return {key: values[key] for key in values if key != "uncond_zero" or values[key]}


def _canonical_vibe(vibe: Vibe) -> dict[str, object]:
    return {
        "strength": vibe.strength,
        "information_extracted": vibe.information_extracted,
        "encoded": isinstance(vibe.source, EncodedVibe),
    }


def _canonical_lora(lora: Lora) -> dict[str, object]:
    return {"name": lora.name, "hash": lora.fingerprint, "unet": lora.unet, "text": lora.text}


def _canonical_prompts(prompts: Prompts) -> dict[str, object]:
    characters = [asdict(character) for character in prompts.characters]
    inversions = [{"name": word.name, "hash": word.fingerprint} for word in prompts.inversions]
    return {
        "positive": prompts.positive,
        "negative": prompts.negative,
        "syntax": prompts.syntax,
        "drop_seams": prompts.drop_seam_tokens,
        **({"characters": characters} if characters else {}),
        **({"inversions": inversions} if inversions else {}),
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
    job: Job, index: int, flags: Mapping[str, bool] | None = None, about: Mapping[str, object] | None = None
) -> dict[str, object]:
    """Return the Comment of a job's image `index`: NAI V3's keys in NAI's order (mid-2024), then our own.

    With a second pass it describes that pass, as after NAI's Enhance. `flags` may have any of the keys in RECORDED;
    `about` is the `naiad` object, if the image is to have one.
    """
    pass_, guidance, flags = job.passes[-1], job.guidance, flags or {}
    request_type, init_fields = _describe_init(pass_, index)
    control = job.controls[0] if job.controls else None
    prompts = job.prompts.written or job.prompts
    return {
        "prompt": strip_unwritable(prompts.positive),
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
        "legacy_v3_extend": prompts.drop_seam_tokens,
        "reference_information_extracted_multiple": [float(vibe.information_extracted) for vibe in job.vibes],
        "reference_strength_multiple": [float(vibe.strength) for vibe in job.vibes],
        "sampler": job.sampler,
        "controlnet_strength": 1.0 if control is None else float(control.strength),
        "controlnet_model": None if control is None else control.name,
        "dynamic_thresholding": guidance.threshold is not None,
        "dynamic_thresholding_percentile": 0.999,
        "dynamic_thresholding_mimic_scale": 10.0,
        "sm": pass_.smea != "off",
        "sm_dyn": pass_.smea == "dyn",
        **_describe_window(guidance),
        "lora_unet_weights": {lora.name: float(lora.unet) for lora in job.loras} or None,
        "lora_clip_weights": {lora.name: float(lora.text) for lora in job.loras} or None,
        **_describe_characters(prompts),
        **init_fields,
        **{key: flags[key] for key in sorted(flags, key=RECORDED.index)},
        "uc": strip_unwritable(prompts.negative),
        "request_type": request_type,
        **_describe_uncond_zero(guidance),
        **({} if about is None else {"naiad": about}),
        "generator": generator_text(),
    }


def _describe_window(guidance: Guidance) -> dict[str, object]:
    """Return the sigmas between which guidance is used, the upper one only if there is one."""
    above = {"skip_cfg_above_sigma": float(guidance.skip_above)} if isfinite(guidance.skip_above) else {}
    return {**above, "skip_cfg_below_sigma": float(guidance.skip_below)}


def _describe_uncond_zero(guidance: Guidance) -> dict[str, object]:
    zero = guidance.uncond_zero
    if zero is None:
        return {}
    return {"uncond_zero": float(zero.scale), "uncond_zero_sharpness": float(zero.sharpness)}


def _describe_characters(prompts: Prompts) -> dict[str, object]:
    """Return the structured prompts of NAI's V4, if characters are drawn by place."""
    characters = prompts.characters
    if not characters:
        return {}
    captions = {
        "v4_prompt": (prompts.positive, [character.positive for character in characters]),
        "v4_negative_prompt": (prompts.negative, [character.negative for character in characters]),
    }
    return {key: _describe_captions(*texts, characters) for key, texts in captions.items()}


def _describe_captions(
    base: str, captions: Sequence[str], characters: Sequence[Character]
) -> dict[str, object]:
    return {
        "caption": {
            "base_caption": strip_unwritable(base),
            "char_captions": [
                {
                    "char_caption": strip_unwritable(caption),
                    "centers": [{"x": character.x, "y": character.y}],
                }
                for caption, character in zip(captions, characters, strict=True)
            ],
        },
        "use_coords": True,
        "use_order": True,
    }


def _describe_init(pass_: Pass, index: int) -> tuple[str, dict[str, object]]:
    """Return the request type and the fields of NAI's Comment about the init image."""
    init = pass_.init
    if init is None:
        return "PromptGenerateRequest", {}
    if isinstance(init, InitImage) and init.mask is not None:
        return "NativeInfillingRequest", {"add_original_image": init.overlay != "none"}
    return "Img2ImgRequest", {
        "strength": float(pass_.strength),
        "noise": float(pass_.noise),
        "extra_noise_seed": (pass_.noise_seed + index) % SEED_MODULUS,
        "legacy": False,
    }


def build_text_fields(
    comment: Mapping[str, object],
    source_hash: str,
    seconds: float,
    public_key: str | None = None,
    title: str = GENERATED,
) -> dict[str, str]:
    """Return the text fields in NAI's order, followed by naiad's own; a `title` of AUGMENTED leaves out the prompt.

    `Software` is NovelAI only if there is a `public_key` that signed the Comment: in an unsigned file the `generator`
    could be edited out unnoticed.

    Raises:
        ValueError: `source_hash` is malformed or one of NAI's, or the Comment has a number that JSON does not allow.
    """
    if not re.fullmatch("[0-9A-F]{8}", source_hash):
        raise ValueError(f"{source_hash!r} is not 8 upper-case hex digits")
    if source_hash in NAI_HASHES:
        raise ValueError(f"{source_hash} is the hash of a NovelAI model")
    return {
        "Title": title,
        **({} if title == AUGMENTED else {"Description": str(comment["prompt"])}),
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


def _to_plain(value: object) -> object:
    """Return a value as JSON has it: lists for tuples, "inf" for infinity."""
    if isinstance(value, dict):
        return {key: _to_plain(inner) for key, inner in cast("dict[str, object]", value).items()}
    if isinstance(value, list | tuple):
        return [_to_plain(inner) for inner in cast("Sequence[object]", value)]
    if isinstance(value, str):
        return strip_unwritable(value)
    return "inf" if value == inf else value
