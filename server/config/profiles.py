"""Profiles of model families: default parameters, noise schedule limits, prompt syntax, and size thresholds.

A profile is chosen by the checkpoint's file name, or else by what its network predicts.
"""

import re
from math import inf
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from pipelines.errors import UnknownName
from pipelines.sampling.samplers import resolve_sampler
from pipelines.sampling.schedules import SCHEDULES
from pipelines.text.markup import fold_tag, strip_weight
from pipelines.types import Family
from pipelines.weights.detect import Detection
from pipelines.weights.families import FAMILIES
from server.config.toml import ConfigError, StrictModel, read_toml, validate
from server.request.schema import LARGEST_AREA, MOST_STEPS


def _check_sampler(name: str) -> str:
    try:
        resolve_sampler(name)
    except UnknownName as error:
        raise ValueError(str(error)) from None
    return name


def _check_family(name: str) -> str:
    if name not in FAMILIES:
        raise ValueError(str(UnknownName("model family", name, FAMILIES)))
    return name


def _check_schedule(name: str) -> str:
    if name not in SCHEDULES:
        raise ValueError(str(UnknownName("noise schedule", name, SCHEDULES)))
    return name


def _check_pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    return text


def _parse_infinity(value: object) -> object:
    return inf if value == "inf" else value


Side = Annotated[int, Field(ge=64, multiple_of=32)]
Scale = Annotated[float, Field(ge=0, le=50)]
SigmaMax = Annotated[float, Field(gt=0), BeforeValidator(_parse_infinity)]
"""Largest sigma of a noise table. The string "inf" is accepted, because values are validated as JSON."""


class Match(StrictModel):
    """Checkpoints that a profile is for: regular expressions for file names.

    `generic` profiles are for all other checkpoints of the same family and prediction. Names of `first` profiles are
    tried before all others: that a model was distilled to a few steps matters more than what it was distilled from.
    """

    name: tuple[Annotated[str, AfterValidator(_check_pattern)], ...] = ()
    generic: bool = False
    first: bool = False


class Defaults(StrictModel):
    """Values of the parameters that a request leaves out."""

    sampler: Annotated[str, AfterValidator(_check_sampler)] = "k_euler"
    noise_schedule: Annotated[str, AfterValidator(_check_schedule)] = "native"
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] = 28
    scale: Scale = 5.0
    cfg_rescale: Annotated[float, Field(ge=0, le=1)] = 0.0
    uncond_zero: Annotated[float, Field(ge=0, le=10)] = 0.0
    width: Side = 832
    height: Side = 1216

    @model_validator(mode="after")
    def check_area(self) -> "Defaults":
        if self.width * self.height > LARGEST_AREA:
            raise ValueError(f"{self.width}x{self.height} is more than {LARGEST_AREA} pixels")
        return self


class Guards(StrictModel):
    """Limits above which a request gets a warning; `mimic_scale` is for dynamic thresholding."""

    warn_scale_above: Scale | None = None
    warn_steps_above: Annotated[int, Field(ge=1)] | None = None
    mimic_scale: Scale = 5.0


def _check_artist(text: str) -> str:
    if text.count("{name}") != 1 or fold_tag(text).startswith("artist:") or re.search("[,|]", text):
        raise ValueError("is not a tag with {name} for the artist's name, like 'by {name}'")
    return text


class Dialect(StrictModel):
    """How NAI's vocabulary is said in the words that a model was trained with (server/request/dialect.py).

    Attributes:
        default: whether it is used for requests without `dialect`.
        artist: what `artist:name` becomes; None leaves it as it is.
        renamed_tags: whose names of the tags in tag_renames.toml the model knows; they replace the others.
        tags: what other tags become: tags separated by commas, one like `(tag:1.5)` with a weight; or nothing.
    """

    default: bool = False
    artist: Annotated[str, AfterValidator(_check_artist)] | None = None
    renamed_tags: Literal["danbooru", "nai"] | None = None
    tags: dict[str, str] = Field(default_factory=dict[str, str])

    @field_validator("tags")
    @classmethod
    def check_tags(cls, tags: dict[str, str]) -> dict[str, str]:
        values = {fold_tag(tag): value for tag, value in tags.items()}
        for tag, value in tags.items():
            for word in value.split(","):
                name = fold_tag(strip_weight(word.strip()))
                if "|" in word or name.startswith("artist:") or values.get(name, word) != word:
                    raise ValueError(f"{tag!r} becomes {word.strip()!r}, which would be replaced too")
        return tags

    @property
    def has_weights(self) -> bool:
        """Whether any tag becomes one with a weight."""
        words = (word.strip() for value in self.tags.values() for word in value.split(","))
        return any(strip_weight(word) != word for word in words)


class Profile(StrictModel):
    """Settings of one model family.

    Attributes:
        sigma_start: first finite sigma of karras, gits and the exponential schedules with zero terminal SNR.
        deep_shrink_above: images of more pixels use deep shrink unless the request turns it off: the UNet's inner
            features are downscaled 2x until at most this area is left (sampling/deep_shrink.py).
        pyramid_above: images of more pixels use the pyramid: early steps run on latents that are downscaled 2x until
            at most this area is left (sampling/pyramid.py).
    """

    name: str
    family: Annotated[Family, AfterValidator(_check_family)]
    prediction: Literal["eps", "v", "edm_v"] | None = None  # of the checkpoints it is for; None for any
    zsnr: bool = False  # whether the network was trained with zero terminal SNR
    match: Match = Match()
    sigma_max: SigmaMax = inf
    sigma_start: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 56.0
    syntax: Literal["nai", "a1111", "nai+a1111"] = "nai"
    deep_shrink_above: Annotated[int, Field(ge=1)] | None = None
    pyramid_above: Annotated[int, Field(ge=1)] | None = None
    auto_smea_from: Annotated[int, Field(ge=1)] = 2_166_785  # pixels from which `autoSmea` turns SMEA on
    defaults: Defaults = Defaults()
    guards: Guards = Guards()
    dialect: Dialect | None = None

    @field_validator("zsnr")
    @classmethod
    def require_velocity(cls, zsnr: bool, info: ValidationInfo) -> bool:
        if zsnr and info.data.get("prediction", "v") != "v":
            raise ValueError("zero terminal SNR needs prediction = 'v'")
        return zsnr

    @field_validator("dialect")
    @classmethod
    def require_weights(cls, dialect: Dialect | None, info: ValidationInfo) -> Dialect | None:
        if dialect is not None and dialect.has_weights and info.data.get("syntax") == "nai":
            raise ValueError("tags like '(tag:1.5)' need syntax = 'nai+a1111' or 'a1111'")
        return dialect


def load_profiles(folder: Path) -> tuple[Profile, ...]:
    """Return all profiles of a folder, named after their files, or raise `ConfigError` if one is invalid."""
    files = sorted(folder.glob("*.toml"))
    return tuple(validate(Profile, {"name": file.stem, **read_toml(file)}, file) for file in files)


def find_profile(profiles: tuple[Profile, ...], name: str) -> Profile:
    """Return the profile of a name, or raise `ConfigError` with the names of all."""
    by_name = {profile.name: profile for profile in profiles}
    if name not in by_name:
        raise ConfigError(f"{name!r} is not a profile; choose one of {', '.join(by_name)}")
    return by_name[name]


def match_profile(profiles: tuple[Profile, ...], file: str, detection: Detection) -> tuple[Profile, str]:
    """Return the profile for a checkpoint and the reason: its file name, or else what its network predicts.

    Raises `ConfigError` if no profile is for this kind of network.
    """
    kind = (detection.family, detection.prediction, detection.zsnr)
    for profile in sorted(profiles, key=lambda profile: not profile.match.first):
        fits = profile.family == detection.family and profile.prediction in (None, detection.prediction)
        if fits and any(re.search(pattern, file, re.IGNORECASE) for pattern in profile.match.name):
            return profile, f"the file's name matches {profile.name}"
    for profile in profiles:
        if profile.match.generic and (profile.family, profile.prediction, profile.zsnr) == kind:
            return profile, "matches what the network predicts; the file's name matches no profile"
    raise ConfigError(
        f"{file}: no profile for {detection.family} with {detection.prediction} prediction "
        f"and zero terminal SNR {'on' if detection.zsnr else 'off'}"
    )
