"""The scale of a VAE's latents, from the `config.json` of a diffusers folder.

A UNet works on latents of one scale. A VAE's weights do not show it: with another scale they load, and give noise.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from pipelines.errors import WeightsError
from pipelines.weights.config_file import is_near, read_config

NEUTRAL = {"shift_factor": 0.0, "latents_mean": 0.0, "latents_std": 1.0}
"""Fields of diffusers' VAE configs that change latents, with the values that change nothing."""


def check_latents(path: Path, latent_scale: float) -> None:
    """Raise WeightsError if the config of a model's or of a VAE's folder names another scale; a file has no config."""
    for file in (path / "vae" / "config.json", path / "config.json"):
        if file.is_file():
            try:
                config = read_config(file)
            except OSError as error:
                raise WeightsError(file, f"cannot be read: {error.strerror}") from error
            _check(file, config, latent_scale)
            return


def _check(file: Path, config: Mapping[str, object], latent_scale: float) -> None:
    for key, expected in {"scaling_factor": latent_scale, **NEUTRAL}.items():
        value = config.get(key)
        if value is not None and not _are_near(value, expected):
            reason = (
                f"{file.parent.name}/{file.name} has {key} {str(value)[:80]}; only {expected:g} is supported"
            )
            raise WeightsError(file.parent.parent, f"{reason}, correct it if it is another VAE's")


def _are_near(value: object, expected: float) -> bool:
    """Whether a number, or each of a list, is the expected one."""
    if isinstance(value, list):
        return all(_are_near(number, expected) for number in cast("list[object]", value))
    return is_near(value, expected, relative=1e-4, absolute=1e-6)
