"""What differs between model families, as data: defaults, where ladders start, and how prompts are written."""

import re
from math import inf
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from pipelines.errors import UnknownName
from pipelines.sampling.samplers import resolve_sampler
from pipelines.sampling.schedules import SCHEDULES
from pipelines.types import Family
from pipelines.weights.detect import Detection
from pipelines.weights.families import FAMILIES
from server.config.toml import ConfigError, StrictModel, read_toml, validate
from server.request.schema import LARGEST_AREA, MOST_STEPS


def _family(name: str) -> str:
    if name not in FAMILIES:
        raise ValueError(str(UnknownName("model family", name, FAMILIES)))
    return name


def _sampler(name: str) -> str:
    try:
        resolve_sampler(name)
    except UnknownName as error:
        raise ValueError(str(error)) from None
    return name


def _schedule(name: str) -> str:
    if name not in SCHEDULES:
        raise ValueError(str(UnknownName("noise schedule", name, SCHEDULES)))
    return name


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return text


def _artist(text: str) -> str:
    if "{name}" not in text:
        raise ValueError("should contain {name}, where the artist's name goes")
    return text


def _size(size: tuple[int, int]) -> tuple[int, int]:
    width, height = size
    if width * height > LARGEST_AREA:
        raise ValueError(f"{width}x{height} is more than {LARGEST_AREA} pixels")
    return size


def _infinity(value: object) -> object:
    return inf if value == "inf" else value


Side = Annotated[int, Field(ge=64, multiple_of=32)]
Size = Annotated[tuple[Side, Side], AfterValidator(_size)]
"""Width and height in pixels."""
Scale = Annotated[float, Field(ge=0, le=50)]
HighestSigma = Annotated[float, BeforeValidator(_infinity), Field(gt=0)]
"""Where a noise table ends; "inf" may be written as a text, as JSON would have it."""


class Match(StrictModel):
    """Which checkpoints a profile is for, by regular expressions for the name; `generic` ones take what is left."""

    name: tuple[Annotated[str, AfterValidator(_pattern)], ...] = ()
    generic: bool = False


class Defaults(StrictModel):
    """What a request gets where it says nothing."""

    sampler: Annotated[str, AfterValidator(_sampler)] = "k_euler"
    noise_schedule: Annotated[str, AfterValidator(_schedule)] = "native"
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] = 28
    scale: Scale = 5.0
    cfg_rescale: Annotated[float, Field(ge=0, le=1)] = 0.0
    width: Side = 832
    height: Side = 1216

    @model_validator(mode="after")
    def area(self) -> "Defaults":
        _size((self.width, self.height))
        return self


class Guards(StrictModel):
    """Where a value is legal but unlikely to be meant; `mimic_scale` is dynamic thresholding's."""

    warn_scale_above: Scale | None = None
    mimic_scale: Scale = 5.0


class Tags(StrictModel):
    """The family's own words for quality, and how it writes an artist."""

    quality: str = ""
    quality_position: Literal["prefix", "suffix"] = "suffix"
    negative: str = ""
    artist_format: Annotated[str, AfterValidator(_artist)] = "artist:{name}"


class Profile(StrictModel):
    """One family's settings; `prediction` and `zsnr` narrow what a generic profile is for.

    Pictures of more than `deep_shrink_above` pixels are drawn with deep shrink unless a request says otherwise, halved
    until so many are left; of more than `pyramid_above` they begin as smaller copies (sampling/pyramid.py); of
    `auto_smea_from` on `autoSmea` means SMEA.
    """

    name: str
    family: Annotated[Family, AfterValidator(_family)]
    prediction: Literal["eps", "v", "edm_v"]
    zsnr: bool = False
    match: Match = Match()
    sigma_max: HighestSigma = inf
    sigma_start: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 56.0
    syntax: Literal["nai", "a1111"] = "nai"
    sizes: tuple[Size, ...] = ()
    deep_shrink_above: Annotated[int, Field(ge=1)] | None = None
    pyramid_above: Annotated[int, Field(ge=1)] | None = None
    auto_smea_from: Annotated[int, Field(ge=1)] = 2_166_785
    defaults: Defaults = Defaults()
    guards: Guards = Guards()
    tags: Tags = Tags()

    @field_validator("zsnr")
    @classmethod
    def only_velocity(cls, zsnr: bool, seen: ValidationInfo) -> bool:
        if zsnr and seen.data.get("prediction", "v") != "v":
            raise ValueError("zero terminal SNR goes with prediction 'v' alone")
        return zsnr


def load_profiles(folder: Path) -> tuple[Profile, ...]:
    """All profiles of a folder; a file's name is its profile's.

    Raises:
        ConfigError: a file that says something unknown or not allowed.
    """
    return tuple(
        validate(Profile, {"name": file.stem, **read_toml(file)}, file)
        for file in sorted(folder.glob("*.toml"))
    )


def find_profile(profiles: tuple[Profile, ...], name: str) -> Profile:
    """The profile of this name; a ConfigError lists those there are."""
    found = next((profile for profile in profiles if profile.name == name), None)
    if found is None:
        raise ConfigError(f"{name!r} is not a profile; there are {', '.join(p.name for p in profiles)}")
    return found


def match_profile(profiles: tuple[Profile, ...], file: str, identity: Detection) -> tuple[Profile, str]:
    """The profile for a checkpoint, and why: its name, else what the network predicts."""
    kind = (identity.family, identity.prediction, identity.zsnr)
    for profile in profiles:
        fits = (profile.family, profile.prediction) == kind[:2]
        if fits and any(re.search(pattern, file, re.IGNORECASE) for pattern in profile.match.name):
            return profile, f"the file's name matches {profile.name}"
    for profile in profiles:
        if profile.match.generic and (profile.family, profile.prediction, profile.zsnr) == kind:
            return profile, "what the network predicts; no known name"
    raise ConfigError(
        f"{file}: no profile for {identity.family} with {identity.prediction} (zero SNR: {identity.zsnr})"
    )
