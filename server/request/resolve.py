"""From a client's request to a job: every default is decided here, and every unusable value refused."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from math import inf
from secrets import randbelow
from typing import Literal

from pipelines.errors import InvalidPrompt, UnknownName
from pipelines.job import SEED_MODULUS, Guidance, InitImage, Job, Prompts, Threshold, UncondZero
from pipelines.sampling.samplers import SAMPLERS, resolve_sampler
from pipelines.sampling.schedules import SCHEDULES
from pipelines.text.nai4 import strip_lettering
from pipelines.text.prompt import list_prompt_pairs, mix_weights
from pipelines.text.runs import Segment
from pipelines.text.tokens import MAX_TOKENS, MAX_WEIGHT, tokenize_runs
from pipelines.text.words import WordFinder
from pipelines.types import Size
from server.config.profiles import Profile
from server.engine.model import ServedModel
from server.errors import Rejected
from server.picture.webp import check_webp_size
from server.request.characters import PlacedPrompts, place_characters
from server.request.controls import read_controls
from server.request.dialect import translate_prompts
from server.request.inversions import choose_inversions
from server.request.loras import RequestedLora, choose_loras, read_loras, take_prompt_loras, warn_of_tags
from server.request.passes import build_enhance_pass, build_first_pass, count_seeds, first_given
from server.request.presets import Mode, Presets, PromptTexts, apply_presets
from server.request.schema import LARGEST_AREA, GenerateRequest, ImageFormat, Parameters, Task
from server.request.v4_prompt import flatten_v4_prompt
from server.request.vibes import read_vibes

NATIVE_ONLY = frozenset({"k_lms", "k_dpm_fast"})
"""Samplers that NAI's page sends without a noise schedule, besides those with their own."""
SAMPLES_BY_AREA = ((360_448, 8), (409_600, 6), (LARGEST_AREA, 4))
"""Largest area in pixels for each number of images in one request (NAI's page, 2026)."""
STRUCTURED = re.compile(r"nai-diffusion-(?:[4-9]|\d\d)")
"""Models from V4 on: their prompt is `v4_prompt`, which clients send to others only for the record, in V4's syntax."""
MOST_SEGMENTS = 32
"""Segments of a `|` mix; each is encoded separately."""


@dataclass(frozen=True, slots=True)
class RequestPolicy:
    """What requests are resolved against: the loaded model, NAI's presets, and the operator's choices."""

    model: ServedModel
    presets: Presets
    mode: Mode = "auto"
    unknown_models: Literal["map", "refuse"] = "map"
    characters: Literal["regional", "flatten"] = "regional"
    vibe_secret: bytes = field(default=b"", repr=False)  # of the codes in encoded vibes
    prompt_loras: bool = False
    others: tuple[ServedModel, ...] = ()  # that requests may name, and are loaded then
    problems: Mapping[str, str] = field(default_factory=dict[str, str])  # of ids that cannot be served
    renames: Mapping[str, str] = field(default_factory=dict[str, str])  # NAI's names of Danbooru tags

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """All models, the default one first."""
        return self.model, *self.others

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all models."""
        return tuple(name for model in self.models for name in model.ids)

    @property
    def has_vibe(self) -> bool:
        """Whether any model has an image adapter."""
        return any(model.vibe is not None for model in self.models)


@dataclass(frozen=True, slots=True)
class ResolvedRequest:
    """A job, the format of its files, and warnings for the client.

    `recorded` are NAI's flags that the metadata repeats; of these only `prefer_brownian` changes the image.
    """

    job: Job
    image_format: ImageFormat
    recorded: Mapping[str, bool]
    warnings: tuple[str, ...]


def random_seed() -> int:
    """Return a seed for a request without one; never 0, which means none."""
    return 1 + randbelow(SEED_MODULUS - 1)


def resolve(
    request: GenerateRequest, policy: RequestPolicy, pick_seed: Callable[[], int] = random_seed
) -> ResolvedRequest:
    """Turn a request into a job.

    Raises:
        Rejected: a value cannot be used; the message names the field, the value and what is allowed.
    """
    model = policy.presets.canonical(request.model or policy.model.id)
    policy, model_warnings = choose_model(model, policy)
    parameters, profile = request.parameters, policy.model.profile
    size = parameters.width or profile.defaults.width, parameters.height or profile.defaults.height
    samples = parameters.n_samples or 1
    enhance = build_enhance_pass(parameters, size, samples, policy.model, pick_seed)
    final_size = size if enhance is None else (enhance.width, enhance.height)
    for pass_size in (size, final_size):
        _check_samples(samples, pass_size)
    image_format = parameters.image_format or "png"
    check_webp_size(image_format, *final_size)
    sampler, smea = _choose_sampler(parameters, request.task, profile, size)
    schedule = _choose_schedule(parameters, sampler, profile)
    recorded = _ancestral_flags(parameters, sampler, schedule)
    prompts, tagged, preset_warnings = _build_prompts(request, model, policy)
    loras, lora_warnings = choose_loras((*read_loras(parameters.loras), *tagged), policy.model)
    inversions, inversion_warnings = choose_inversions(prompts, policy.model, loras)
    prompts = replace(prompts, inversions=inversions) if inversions else prompts
    prompts, dialect_warnings = _use_dialect(prompts, parameters.dialect, policy)
    prompt_warnings = (*preset_warnings, *inversion_warnings, *dialect_warnings, *_check_prompts(prompts))
    seeds = count_seeds((parameters.seed or 0) % SEED_MODULUS or pick_seed(), samples)
    vibes = read_vibes(parameters, policy.model, policy.vibe_secret)
    controls = read_controls(parameters, policy.model, size)
    first = build_first_pass(parameters, size, seeds, smea, profile)
    job = Job(
        model=policy.model.id,
        prompts=prompts,
        steps=parameters.steps or profile.defaults.steps,
        sampler=sampler,
        schedule=schedule,
        guidance=_build_guidance(parameters, profile),
        passes=(first,) if enhance is None else (first, enhance),
        sigma_start=profile.sigma_start,
        brownian=recorded["prefer_brownian"],
        vibes=vibes,
        loras=loras,
        controls=controls,
    )
    legacy = {} if parameters.legacy is None else {"legacy": parameters.legacy}
    warnings = (
        *model_warnings,
        *request.warnings,
        *prompt_warnings,
        *lora_warnings,
        *_warn_of_values(parameters, job, profile),
    )
    return ResolvedRequest(job, image_format, legacy | recorded, warnings)


def choose_model(name: str, policy: RequestPolicy) -> tuple[RequestPolicy, tuple[str, ...]]:
    """Return the policy for the requested model, and a warning if another one answers; or refuse.

    An inpainting model that the catalog does not list is the one that it was made from.
    """
    loaded = policy.model
    served = {listed: model for model in reversed(policy.models) for listed in model.ids}
    is_listed = name in served or name in policy.problems or name in loaded.other_ids
    wanted = name if is_listed else name.removesuffix("-inpainting")
    if wanted in served:
        model = served[wanted]
        return (policy if model is loaded else replace(policy, model=model)), ()
    if wanted in policy.problems:
        problem = policy.problems[wanted]
        raise Rejected("model", f"{name!r} cannot be served: {problem}; served: {', '.join(policy.ids)}")
    if wanted in loaded.other_ids:
        raise Rejected("model", f"{name!r} is in the catalog but not loaded; loaded is {loaded.id!r}")
    if policy.unknown_models == "refuse":
        near = get_close_matches(name, policy.ids, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise Rejected("model", f"{name!r} is not served{hint}; served: {', '.join(policy.ids)}")
    return policy, (f"model: {name!r} is answered by {loaded.id!r}",)


def _check_samples(count: int, size: Size) -> None:
    width, height = size
    area = width * height
    if area > LARGEST_AREA:
        raise Rejected("parameters.width", f"{width}x{height} is {area} pixels; at most {LARGEST_AREA}")
    most = next(most for limit, most in SAMPLES_BY_AREA if area <= limit)
    if count > most:
        raise Rejected("parameters.n_samples", f"{count} images of {width}x{height}; at most {most}")


def _choose_sampler(parameters: Parameters, task: Task, profile: Profile, size: Size) -> tuple[str, str]:
    """Return the sampler and the SMEA mode; DYN implies SMEA, init images and some samplers exclude both."""
    try:
        name, smea = resolve_sampler(parameters.sampler or profile.defaults.sampler)
    except UnknownName as error:
        raise Rejected("parameters.sampler", str(error)) from None
    if task == "infill" and name == "ddim_v3":
        return "k_euler_ancestral", "off"
    if not SAMPLERS[name].smea or task != "generate":
        return name, "off"
    if parameters.sm_dyn:
        return name, "dyn"
    wants_auto = True in (parameters.auto_smea, parameters.auto_smea_too)
    automatic = wants_auto and size[0] * size[1] >= profile.auto_smea_from
    return name, "smea" if (parameters.sm or automatic) and smea == "off" else smea


def _choose_schedule(parameters: Parameters, sampler: str, profile: Profile) -> str:
    name = parameters.noise_schedule or profile.defaults.noise_schedule
    if name not in SCHEDULES:
        raise Rejected("parameters.noise_schedule", str(UnknownName("noise schedule", name, SCHEDULES)))
    is_alias = parameters.sampler in ("nai_smea", "nai_smea_dyn")
    is_fixed = SAMPLERS[sampler].own_schedule or sampler in NATIVE_ONLY
    return "native" if is_fixed or is_alias else name


def _ancestral_flags(parameters: Parameters, sampler: str, schedule: str) -> dict[str, bool]:
    """Return two flags that NAI's page sets for Euler ancestral on any schedule but native."""
    modern = sampler == "k_euler_ancestral" and schedule != "native"
    return {
        "deliberate_euler_ancestral_bug": first_given(parameters.deliberate_euler_ancestral_bug, not modern),
        "prefer_brownian": first_given(parameters.prefer_brownian, modern),
    }


def _build_prompts(
    request: GenerateRequest, model: str, policy: RequestPolicy
) -> tuple[Prompts, tuple[RequestedLora, ...], tuple[str, ...]]:
    """The prompts, from the fields that hold them, with the presets that apply; their LoRAs; warnings."""
    parameters, syntax = request.parameters, choose_syntax(model, policy.model.profile)
    found = _find_texts(request, model, syntax, policy.characters == "regional")
    tag_warnings = () if policy.prompt_loras else warn_of_tags(found)
    found, loras = take_prompt_loras(found) if policy.prompt_loras else (found, ())
    flags = parameters.quality_toggle, parameters.uc_preset, parameters.quality_id, parameters.uc_id
    captions = ", ".join(character.positive for character in found.characters)
    texts = PromptTexts(found.positive, found.negative, *flags, captions=captions)
    final = apply_presets(texts, policy.presets, model, policy.mode, syntax)
    drop_seams = bool(parameters.legacy_v3_extend)
    prompts = Prompts(final.positive, final.negative, syntax, drop_seams, found.characters)
    return prompts, loras, (*final.warnings, *tag_warnings)


def _use_dialect(
    prompts: Prompts, wanted: bool | None, policy: RequestPolicy
) -> tuple[Prompts, tuple[str, ...]]:
    """Return the prompts in the model's dialect, if the request or else the profile wants that; and warnings."""
    profile = policy.model.profile
    dialect = profile.dialect
    if dialect is None:
        warning = f"dialect: the profile {profile.name!r} has none; the prompts are encoded as they are"
        return prompts, (warning,) if wanted else ()
    if first_given(wanted, dialect.default):
        return translate_prompts(prompts, dialect, policy.renames), ()
    return prompts, ()


def choose_syntax(model: str, profile: Profile) -> str:
    """Return the syntax of a request's prompts: the requested model's, unless the loaded one's profile has another."""
    return "nai4" if profile.syntax != "a1111" and STRUCTURED.match(model) else profile.syntax


def _find_texts(request: GenerateRequest, model: str, syntax: str, by_place: bool) -> PlacedPrompts:
    """Return prompt and negative prompt, from the fields that hold them, and if `by_place` the placed characters."""
    parameters = request.parameters
    positive = _first_filled(request.input, parameters.prompt)
    negative = _first_filled(parameters.negative_prompt, parameters.uc)
    if positive and not STRUCTURED.match(model):
        return PlacedPrompts(positive, negative)
    sent = parameters.v4_prompt, parameters.v4_negative_prompt
    placed = place_characters(*sent, syntax) if by_place else None
    if placed is not None:
        return replace(placed, negative=placed.negative or negative)
    v4_positive = flatten_v4_prompt(parameters.v4_prompt, "parameters.v4_prompt", syntax)
    field = "parameters.v4_negative_prompt"
    v4_negative = flatten_v4_prompt(parameters.v4_negative_prompt, field, syntax)
    return PlacedPrompts(v4_positive or positive, v4_negative or negative)


def _build_guidance(parameters: Parameters, profile: Profile) -> Guidance:
    guidance = Guidance(
        scale=first_given(parameters.scale, profile.defaults.scale),
        rescale=first_given(parameters.cfg_rescale, profile.defaults.cfg_rescale),
        skip_above=first_given(parameters.skip_cfg_above_sigma, inf),
        skip_below=first_given(parameters.skip_cfg_below_sigma, 0.0),
    )
    if zero_scale := first_given(parameters.uncond_zero, profile.defaults.uncond_zero):
        sharpness = first_given(parameters.uncond_zero_sharpness, 1.0)
        return replace(guidance, uncond_zero=UncondZero(zero_scale, sharpness))
    threshold = Threshold(mimic_scale=profile.guards.mimic_scale) if parameters.dynamic_thresholding else None
    return replace(guidance, uncond_scale=parameters.uncond_scale or 1.0, threshold=threshold)


def _check_prompts(prompts: Prompts) -> list[str]:
    """Refuse mixes that cannot be weighted, and warn of texts and weights that are cut."""
    warnings: list[str] = []
    if prompts.syntax == "nai4" and strip_lettering(prompts.positive) != prompts.positive:
        warnings.append("input: the lettering after 'text:' was left out; this model writes no text")
    pairs, counts = (
        list_prompt_pairs(prompts),
        WordFinder({word.name: (0,) * word.count for word in prompts.inversions}),
    )
    names = ["input", "negative_prompt"] + ["v4_prompt", "v4_negative_prompt"] * (len(pairs) - 1)
    for name, segments in zip(names, (segments for pair in pairs for segments in pair), strict=True):
        if len(segments) > MOST_SEGMENTS:
            raise Rejected(name, f"mixes {len(segments)} texts; at most {MOST_SEGMENTS}")
        try:
            mix_weights(segments)
        except InvalidPrompt as error:
            raise Rejected(name, str(error)) from None
        long = (segment for segment in segments if not _is_short(segment, prompts))
        longest = max((len(tokenize_runs(segment.runs, counts)) for segment in long), default=0)
        if longest > MAX_TOKENS:
            warnings.append(f"{name}: {longest} tokens, cut after {MAX_TOKENS}")
        heaviest = max((weight for segment in segments for _, weight in segment.runs), default=1.0)
        if heaviest > MAX_WEIGHT:
            warnings.append(f"{name}: weight {heaviest:g} is above {MAX_WEIGHT:g}, which was used")
    return warnings


def _is_short(segment: Segment, prompts: Prompts) -> bool:
    """Return whether a segment cannot have too many tokens, which have a character each at least."""
    texts = [text for text, _ in segment.runs]
    letters = sum(len(text.replace(" ", "")) for text in texts)
    return letters <= MAX_TOKENS and not prompts.inversions and all(map(str.isascii, texts))


def _warn_of_values(parameters: Parameters, job: Job, profile: Profile) -> list[str]:
    """Warn of values that were replaced, or have no effect, or do not suit the model."""
    warnings: list[str] = []
    init, sampler = job.passes[0].init, parameters.sampler
    if isinstance(init, InitImage) and init.mask is not None and sampler in ("ddim", "ddim_v3"):
        warnings.append(f"sampler: {sampler!r} cannot infill; {job.sampler} was used")
    schedule = parameters.noise_schedule
    if schedule and schedule != job.schedule:
        warnings.append(
            f"noise_schedule: {schedule!r} cannot be used with {sampler or job.sampler}; {job.schedule} was used"
        )
    return [*warnings, *_warn_of_guards(job, profile), *_warn_of_uncond_zero(parameters, job)]


def _warn_of_guards(job: Job, profile: Profile) -> Iterator[str]:
    """Warn of a scale or a number of steps that does not suit the model."""
    most, scale = profile.guards.warn_scale_above, job.guidance.scale
    if most and scale > most and job.guidance.uncond_zero is None:
        yield f"scale: {scale:g} is above what this model is suited to ({most:g})"
    most, own = profile.guards.warn_steps_above, profile.defaults
    if most and job.steps > most:
        suited = f"{own.steps} steps of {own.sampler} with {own.noise_schedule} at scale {own.scale:g}"
        yield f"steps: {job.steps} is above what this model is suited to ({most}); its own are {suited}"


def _warn_of_uncond_zero(parameters: Parameters, job: Job) -> list[str]:
    """Warn of parameters that `uncond_zero` makes useless, or that need it."""
    if job.guidance.uncond_zero is None:
        is_sent = parameters.uncond_zero_sharpness is not None
        return ["uncond_zero_sharpness: has no effect without uncond_zero"] if is_sent else []
    sent = {
        "scale": parameters.scale is not None,
        "negative_prompt": bool(job.prompts.negative.strip()),
        "uncond_scale": parameters.uncond_scale not in (None, 0, 1),
        "dynamic_thresholding": bool(parameters.dynamic_thresholding),
    }
    names = ", ".join(name for name, is_sent in sent.items() if is_sent)
    return [f"uncond_zero: replaces {names}; no effect here"] if names else []


def _first_filled(*texts: str | None) -> str:
    """Return the first text that is not blank."""
    return next((text for text in texts if text and text.strip()), "")
