"""From what a client sent to the job that will be drawn: every default decided, every doubt refused here."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf
from secrets import randbelow
from typing import Literal

from pipelines.errors import InvalidPrompt, UnknownName
from pipelines.job import SEED_MODULUS, Guidance, Job, Prompts, Threshold
from pipelines.sampling.samplers import resolve_sampler
from pipelines.sampling.schedules import SCHEDULES
from pipelines.text.prompt import mix_weights, parse
from pipelines.text.tokens import MAX_TOKENS, tokenize_runs
from server.config.profiles import Profile
from server.engine.model import ServedModel
from server.errors import Rejected
from server.picture.webp import check_webp_size
from server.request import tasks
from server.request.presets import Mode, Presets, PromptTexts, apply_presets
from server.request.schema import LARGEST_AREA, GenerateRequest, Parameters
from server.request.tasks import Task, first_given
from server.request.v4_prompt import flatten_v4_prompt

NO_SMEA = frozenset({"ddim_v3", "plms", "k_lms"})
NATIVE_ONLY = frozenset({"ddim_v3", "plms", "k_lms", "k_dpm_fast"})
"""Samplers NAI's page sends no noise schedule with."""
DDIM = ("ddim", "ddim_v3")
SAMPLES_BY_AREA = ((360_448, 8), (409_600, 6), (LARGEST_AREA, 4))
"""The largest area, in pixels, at which so many pictures may be asked for at once (NAI's page, 2026)."""
STRUCTURED = re.compile(r"nai-diffusion-[4-9]")
"""The models whose prompt is `v4_prompt`; others are sent one too, but only for the record."""
MOST_MIXED = 32
"""Sides of `|`; each is encoded by itself."""


@dataclass(frozen=True, slots=True)
class RequestPolicy:
    """What a request is read against: the model served, NAI's presets, and the operator's choices."""

    served: ServedModel
    presets: Presets
    mode: Mode = "auto"
    unknown_models: Literal["map", "refuse"] = "map"


@dataclass(frozen=True, slots=True)
class ResolvedRequest:
    """A job; how its pictures are to be written; and what the client should be told about how it was read.

    `recorded` are flags that change no picture and are written down as they were sent.
    """

    job: Job
    image_format: Literal["png", "webp"]
    recorded: Mapping[str, bool]
    warnings: tuple[str, ...]


def random_seed() -> int:
    """A seed for a request that brings none; never 0, which means the same as none."""
    return 1 + randbelow(SEED_MODULUS - 1)


def resolve(
    request: GenerateRequest, policy: RequestPolicy, pick_seed: Callable[[], int] = random_seed
) -> ResolvedRequest:
    """Decide a request.

    Raises:
        Rejected: a field's value cannot be used; the message names the field, the value and what is allowed.
    """
    asked, profile = request.parameters, policy.served.profile
    kind = tasks.task(request)
    asked_model = policy.presets.canonical(request.model or policy.served.model)
    told = _model(asked_model, policy)
    width, height = asked.width or profile.defaults.width, asked.height or profile.defaults.height
    second = tasks.enhance(asked, kind, (width, height), policy.served, pick_seed)
    last = (width, height) if second is None else (second.width, second.height)
    samples = _samples(asked.n_samples or 1, width, height)
    _samples(samples, *last)
    image_format = _image_format(asked, *last)
    sampler, smea = _sampler(asked, kind, profile, width * height)
    schedule = _schedule(asked, sampler, profile)
    bug, brownian = _ancestral_flags(asked, sampler, schedule)
    prompts = _prompts(request, asked_model, policy)
    cut = _cut(prompts)
    seeds = _seeds(asked, samples, pick_seed)
    job = Job(
        model=policy.served.model,
        prompts=prompts,
        width=width,
        height=height,
        steps=asked.steps or profile.defaults.steps,
        sampler=sampler,
        schedule=schedule,
        guidance=_guidance(asked, profile),
        seeds=seeds,
        sigma_start=profile.sigma_start,
        brownian=brownian,
        smea=smea,
        deep_shrink=tasks.halved(asked, profile, (width, height)),
        pyramid=tasks.levels(profile, (width, height)),
        source=tasks.source(asked, kind, (width, height), seeds[0]),
        enhance=second,
    )
    legacy = {} if asked.legacy is None else {"legacy": asked.legacy}
    recorded = {**legacy, "deliberate_euler_ancestral_bug": bug, "prefer_brownian": brownian}
    warnings = (*told, *cut, *_replaced(asked, job), *_excess(job, profile))
    return ResolvedRequest(job, image_format, recorded, warnings)


def _image_format(asked: Parameters, width: int, height: int) -> Literal["png", "webp"]:
    image_format = asked.image_format or "png"
    check_webp_size(image_format, width, height)
    return image_format


def _model(name: str, policy: RequestPolicy) -> tuple[str, ...]:
    """What is to be said of the model asked for; nothing when it is the one that is loaded."""
    served = policy.served
    names = {name, name.removesuffix("-inpainting")}
    if names & set(served.ids):
        return ()
    if names & set(served.elsewhere):
        raise Rejected("model", f"{name!r} is in the catalogue but not loaded; loaded is {served.model!r}")
    if policy.unknown_models == "refuse":
        near = get_close_matches(name, served.ids, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise Rejected("model", f"{name!r} doesn't exist here{hint}; served: {', '.join(served.ids)}")
    return (f"model: {name!r} is answered by {served.model!r}",)


def _samples(count: int, width: int, height: int) -> int:
    area = width * height
    if area > LARGEST_AREA:
        raise Rejected("parameters.width", f"{width}x{height} is {area} pixels; at most {LARGEST_AREA}")
    most = next(most for limit, most in SAMPLES_BY_AREA if area <= limit)
    if count > most:
        raise Rejected("parameters.n_samples", f"{count} pictures of {width}x{height}; at most {most}")
    return count


def _sampler(asked: Parameters, kind: Task, profile: Profile, area: int) -> tuple[str, str]:
    """The sampler, and whether SMEA or DYN goes with it (DYN implies SMEA; pictures and some samplers exclude both)."""
    try:
        name, smea = resolve_sampler(asked.sampler or profile.defaults.sampler)
    except UnknownName as error:
        raise Rejected("parameters.sampler", str(error)) from None
    if kind == "infill" and name == "ddim_v3":
        return "k_euler_ancestral", "off"
    if name in NO_SMEA or kind != "generate":
        return name, "off"
    if asked.sm_dyn:
        return name, "dyn"
    automatic = True in (asked.auto_smea, asked.auto_smea_too) and area >= profile.auto_smea_from
    return name, "smea" if (asked.sm or automatic) and smea == "off" else smea


def _schedule(asked: Parameters, sampler: str, profile: Profile) -> str:
    name = asked.noise_schedule or profile.defaults.noise_schedule
    if name not in SCHEDULES:
        known = UnknownName("noise schedule", name, SCHEDULES)
        raise Rejected("parameters.noise_schedule", str(known))
    return "native" if sampler in NATIVE_ONLY or asked.sampler in ("nai_smea", "nai_smea_dyn") else name


def _ancestral_flags(asked: Parameters, sampler: str, schedule: str) -> tuple[bool, bool]:
    """`deliberate_euler_ancestral_bug` and `prefer_brownian`; NAI's page sets both for Euler a off native."""
    modern = sampler == "k_euler_ancestral" and schedule != "native"
    return first_given(asked.deliberate_euler_ancestral_bug, not modern), first_given(
        asked.prefer_brownian, modern
    )


def _prompts(request: GenerateRequest, model: str, policy: RequestPolicy) -> Prompts:
    """The texts, from whichever of their fields holds them, with the presets they are due."""
    asked, syntax = request.parameters, policy.served.profile.syntax
    positive, negative = _texts(request, model)
    texts = PromptTexts(positive, negative, asked.quality_toggle, asked.uc_preset)
    final = apply_presets(texts, policy.presets, model, policy.mode, mixes=syntax == "nai")
    return Prompts(final.positive, final.negative, syntax, drop_seam_tokens=bool(asked.legacy_v3_extend))


def _texts(request: GenerateRequest, model: str) -> tuple[str, str]:
    """The prompt and what is undesired, from whichever of their fields hold them."""
    asked = request.parameters
    positive, negative = _filled(request.input, asked.prompt), _filled(asked.negative_prompt, asked.uc)
    if positive and not STRUCTURED.match(model):
        return positive, negative
    captions = flatten_v4_prompt(asked.v4_prompt, "parameters.v4_prompt")
    undesired = flatten_v4_prompt(asked.v4_negative_prompt, "parameters.v4_negative_prompt")
    return captions or positive, undesired or negative


def _guidance(asked: Parameters, profile: Profile) -> Guidance:
    return Guidance(
        scale=first_given(asked.scale, profile.defaults.scale),
        rescale=first_given(asked.cfg_rescale, profile.defaults.cfg_rescale),
        uncond_scale=asked.uncond_scale or 1.0,
        threshold=Threshold(mimic_scale=profile.guards.mimic_scale) if asked.dynamic_thresholding else None,
        skip_above=first_given(asked.skip_cfg_above_sigma, inf),
        skip_below=first_given(asked.skip_cfg_below_sigma, 0.0),
    )


def _seeds(asked: Parameters, samples: int, pick_seed: Callable[[], int]) -> tuple[int, ...]:
    """Image i has seed + i; clients count beyond 32 bits and below zero, so everything is taken modulo 2^32."""
    lowest = (asked.seed or 0) % SEED_MODULUS or pick_seed()
    return tuple((lowest + image) % SEED_MODULUS for image in range(samples))


def _cut(prompts: Prompts) -> list[str]:
    said: list[str] = []
    for name, text in (("input", prompts.positive), ("negative_prompt", prompts.negative)):
        segments = parse(text, prompts.syntax)
        if len(segments) > MOST_MIXED:
            raise Rejected(name, f"mixes {len(segments)} texts; at most {MOST_MIXED}")
        try:
            mix_weights(segments)
        except InvalidPrompt as error:
            raise Rejected(name, str(error)) from None
        longest = max(len(tokenize_runs(segment.runs)) for segment in segments)
        if longest > MAX_TOKENS:
            said.append(f"{name}: {longest} tokens, cut after {MAX_TOKENS}")
    return said


def _replaced(asked: Parameters, job: Job) -> list[str]:
    said: list[str] = []
    if job.source is not None and job.source.mask is not None and asked.sampler in DDIM:
        said.append(f"sampler: {asked.sampler!r} does not go with infill; {job.sampler} does")
    given = asked.noise_schedule
    if given and given != job.schedule:
        said.append(
            f"noise_schedule: {given!r} does not go with {asked.sampler or job.sampler}; {job.schedule} does"
        )
    return said


def _excess(job: Job, profile: Profile) -> list[str]:
    most, scale = profile.guards.warn_scale_above, job.guidance.scale
    return (
        [f"scale: {scale:g} is more than this model takes well ({most:g})"] if most and scale > most else []
    )


def _filled(*texts: str | None) -> str:
    """The first text that says something."""
    return next((text for text in texts if text and text.strip()), "")
