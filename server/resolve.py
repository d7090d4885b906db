"""From what a client sent to the job that will be drawn: every default decided, every doubt refused here."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from secrets import randbelow
from typing import TypeVar

from pipelines.errors import UnknownName
from pipelines.job import Guidance, Job, Prompts, Threshold
from pipelines.prompt import parse
from pipelines.samplers import canonical
from pipelines.schedules import SCHEDULES
from pipelines.tokens import LIMIT, weighted
from server.errors import Rejected
from server.profiles import Profile
from server.wire import LARGEST_AREA, GenerateRequest, Parameters

NO_SMEA = frozenset({"ddim_v3", "plms", "k_lms"})
SEEDS = 2**32
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Resolved:
    """A job, and what the client should be told about how its request was read."""

    job: Job
    warnings: tuple[str, ...]


def any_seed() -> int:
    """A seed for a request that brings none; never 0, which means the same as none."""
    return 1 + randbelow(SEEDS - 1)


def resolve(request: GenerateRequest, profile: Profile, pick_seed: Callable[[], int] = any_seed) -> Resolved:
    """Decide a request.

    Raises:
        Rejected: a field's value cannot be used; the message names the field, the value and what is allowed.
    """
    asked, defaults = request.parameters, profile.defaults
    if request.action != "generate" or asked.image:
        raise Rejected(
            "action", f"{request.action!r} with an image is not offered yet; this version draws from text"
        )
    width, height = _size(asked.width or defaults.width, asked.height or defaults.height)
    sampler, smea = _sampler(asked, defaults.sampler)
    prompts = Prompts(
        positive=request.input or asked.prompt or "",
        negative=_first(asked.negative_prompt, asked.uc, ""),
        syntax=profile.syntax,
        drop_seams=bool(asked.legacy_v3_extend),
    )
    job = Job(
        model=request.model,
        prompts=prompts,
        width=width,
        height=height,
        steps=asked.steps or defaults.steps,
        sampler=sampler,
        schedule=_schedule(asked.noise_schedule or defaults.noise_schedule),
        guidance=_guidance(asked, profile),
        seeds=_seeds(asked, pick_seed),
        sigma_start=profile.sigma_start,
        brownian=bool(asked.prefer_brownian),
        smea=smea,
    )
    return Resolved(job, _warnings(prompts))


def _size(width: int, height: int) -> tuple[int, int]:
    if width * height > LARGEST_AREA:
        raise Rejected("parameters.width", f"{width}x{height} is more than {LARGEST_AREA} pixels")
    return width, height


def _sampler(asked: Parameters, default: str) -> tuple[str, str]:
    """The sampler, and whether SMEA or DYN goes with it (DYN implies SMEA; some samplers exclude both)."""
    try:
        name, smea = canonical(asked.sampler or default)
    except UnknownName as error:
        raise Rejected("parameters.sampler", str(error)) from None
    if name in NO_SMEA:
        return name, "off"
    if asked.sm_dyn:
        return name, "dyn"
    return name, "smea" if asked.sm and smea == "off" else smea


def _schedule(name: str) -> str:
    if name not in SCHEDULES:
        raise Rejected("parameters.noise_schedule", str(UnknownName("noise schedule", name, SCHEDULES)))
    return name


def _guidance(asked: Parameters, profile: Profile) -> Guidance:
    return Guidance(
        scale=_first(asked.scale, profile.defaults.scale),
        rescale=_first(asked.cfg_rescale, profile.defaults.cfg_rescale),
        uncond_scale=asked.uncond_scale or 1.0,
        threshold=Threshold(mimic_scale=profile.guards.mimic_scale) if asked.dynamic_thresholding else None,
        skip_above=_first(asked.skip_cfg_above_sigma, inf),
        skip_below=_first(asked.skip_cfg_below_sigma, 0.0),
    )


def _seeds(asked: Parameters, pick_seed: Callable[[], int]) -> tuple[int, ...]:
    """Image i has seed + i; clients count beyond 32 bits and below zero, so everything is taken modulo 2^32."""
    first = (asked.seed or 0) % SEEDS or pick_seed()
    return tuple((first + image) % SEEDS for image in range(asked.n_samples or 1))


def _warnings(prompts: Prompts) -> tuple[str, ...]:
    said: list[str] = []
    for name, text in (("input", prompts.positive), ("negative_prompt", prompts.negative)):
        longest = max(len(weighted(segment.runs)) for segment in parse(text, prompts.syntax))
        if longest > LIMIT:
            said.append(f"{name}: {longest} tokens, cut after {LIMIT}")
    return tuple(said)


def _first(*choices: T | None) -> T:
    """The first value that was given at all."""
    return next(choice for choice in choices if choice is not None)
