"""What differs between model families, as data: defaults, where ladders start, and how prompts are written."""

import re
from pathlib import Path
from typing import Literal

from pipelines.sniff import Identity
from server.settings import ConfigError, Strict, checked, read_toml


class Match(Strict):
    """Which checkpoints a profile is for, by name; `generic` ones take what is left."""

    name: tuple[str, ...] = ()
    generic: bool = False


class Defaults(Strict):
    """What a request gets where it says nothing."""

    sampler: str = "k_euler"
    noise_schedule: str = "native"
    steps: int = 28
    scale: float = 5.0
    cfg_rescale: float = 0.0
    width: int = 832
    height: int = 1216


class Guards(Strict):
    """Where a value is legal but unlikely to be meant; `mimic_scale` is dynamic thresholding's."""

    warn_scale_above: float | None = None
    mimic_scale: float = 5.0


class Tags(Strict):
    """The family's own words for quality, and how it writes an artist."""

    quality: str = ""
    quality_position: Literal["prefix", "suffix"] = "suffix"
    negative: str = ""
    artist_format: str = "artist:{name}"


class Profile(Strict):
    """One family's settings; `prediction` and `zsnr` narrow what a generic profile is for."""

    name: str
    family: Literal["sdxl", "sd15"]
    prediction: Literal["eps", "v", "edm_v"]
    zsnr: bool = False
    match: Match = Match()
    sigma_max: float = float("inf")
    sigma_start: float = 56.0
    syntax: Literal["nai", "a1111"] = "nai"
    sizes: tuple[tuple[int, int], ...] = ()
    defaults: Defaults = Defaults()
    guards: Guards = Guards()
    tags: Tags = Tags()


def load_profiles(folder: Path) -> tuple[Profile, ...]:
    """All profiles of a folder; a file's name is its profile's.

    Raises:
        ConfigError: a file that says something unknown or not allowed.
    """
    return tuple(
        checked(Profile, {"name": file.stem, **read_toml(file)}, str(file))
        for file in sorted(folder.glob("*.toml"))
    )


def named(profiles: tuple[Profile, ...], name: str) -> Profile:
    """The profile of this name; a ConfigError lists those there are."""
    found = next((profile for profile in profiles if profile.name == name), None)
    if found is None:
        raise ConfigError(f"{name!r} is not a profile; there are {', '.join(p.name for p in profiles)}")
    return found


def matching(profiles: tuple[Profile, ...], file: str, identity: Identity) -> tuple[Profile, str]:
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
