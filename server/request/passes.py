"""The passes of a job: their sizes, the images they start from, and Enhance's second pass."""

from collections.abc import Callable
from typing import TypeVar

from pipelines.job import SEED_MODULUS, InitImage, Pass, PreviousPass
from pipelines.plan import Downscales, choose_downscales
from pipelines.types import Size
from server.config.profiles import Profile
from server.engine.model import ServedModel
from server.errors import Rejected
from server.heap import trim_heap
from server.request.images import read_image, read_mask
from server.request.schema import (
    LARGEST_AREA,
    GenerateParameters,
    ImageParameters,
    Img2ImgParameters,
    InfillParameters,
    Parameters,
)

MAGNITUDES = {1: (0.2, 0.0), 2: (0.4, 0.0), 3: (0.5, 0.0), 4: (0.6, 0.0), 5: (0.7, 0.1)}
"""Strength and noise of Enhance's magnitudes (NAI's page, 2023 to 2026)."""
T = TypeVar("T")


def build_first_pass(
    parameters: Parameters, size: Size, seeds: tuple[int, ...], smea: str, profile: Profile
) -> Pass:
    """Build the pass that a request describes.

    Raises:
        Rejected: its image or mask cannot be read.
    """
    init, strength, noise, noise_seed = _read_init(parameters, size, seeds[0])
    if init is not None:
        trim_heap()
    levels = _choose_downscales(parameters, size, profile)
    return Pass(*size, seeds, init, strength, noise, noise_seed, smea, levels.pyramid, levels.deep_shrink)


def _read_init(parameters: Parameters, size: Size, seed: int) -> tuple[InitImage | None, float, float, int]:
    """The init image, its strength and noise, and the seed of the noise: the first image's unless given."""
    if not isinstance(parameters, ImageParameters):
        return None, 1.0, 0.0, 0
    image, nested = read_image(parameters.image, "parameters.image", *size), parameters.nested
    color_correct = bool(first_given(parameters.color_correct, nested.color_correct, False))
    if isinstance(parameters, InfillParameters):
        mask = read_mask(parameters.mask, "parameters.mask", *size, soft=bool(parameters.soft_mask))
        overlay = parameters.overlay or ("none" if parameters.add_original_image is False else "soft")
        return InitImage(image, mask, overlay, color_correct), _infill_strength(parameters), 0.0, 0
    assert isinstance(parameters, Img2ImgParameters)
    noise_seed = first_given(parameters.extra_noise_seed, nested.extra_noise_seed, seed) % SEED_MODULUS
    strength = first_given(parameters.strength, nested.strength, 0.7)
    noise = first_given(parameters.noise, nested.noise, 0.0)
    return InitImage(image, color_correct=color_correct), strength, noise, noise_seed


def _infill_strength(parameters: InfillParameters) -> float:
    strength = first_given(parameters.strength, parameters.nested.strength, 1.0)
    if strength == 0:
        raise Rejected("parameters.img2img.strength", "0 is not a number above 0, at most 1")
    return strength


def build_enhance_pass(
    parameters: Parameters, size: Size, samples: int, model: ServedModel, pick_seed: Callable[[], int]
) -> Pass | None:
    """Build the second pass that `enhance` asks for, after a first one of this size; None without it.

    Raises:
        Rejected: it is not available, or its size cannot be generated.
    """
    enhance = parameters.enhance if isinstance(parameters, GenerateParameters) else None
    if enhance is None:
        return None
    init = PreviousPass(network=enhance.upscaler == "network")
    if init.network and not model.has_upscaler:
        raise Rejected(
            "parameters.enhance.upscaler", "no upscaling network is loaded; 'lanczos' is always available"
        )
    size = _enhanced_size(size, first_given(enhance.scale, 1.5))
    strength, noise = enhance_change(enhance.magnitude, enhance.strength, enhance.noise)
    seed = (enhance.seed or 0) % SEED_MODULUS or pick_seed()
    seeds, levels = count_seeds(seed, samples), _choose_downscales(parameters, size, model.profile)
    return Pass(
        *size, seeds, init, strength, noise, seed, pyramid=levels.pyramid, deep_shrink=levels.deep_shrink
    )


def enhance_change(magnitude: int | None, strength: float | None, noise: float | None) -> tuple[float, float]:
    """Return strength and noise of an Enhance; explicit values take precedence over a magnitude.

    Raises:
        Rejected: neither a strength nor a magnitude is given.
    """
    if strength is not None:
        return strength, noise or 0.0
    if magnitude is None:
        raise Rejected("parameters.enhance", "needs a magnitude, 1 to 5, or a strength")
    return MAGNITUDES[magnitude][0], first_given(noise, MAGNITUDES[magnitude][1])


def _choose_downscales(parameters: Parameters, size: Size, profile: Profile) -> Downscales:
    return choose_downscales(*size, profile.pyramid_above, profile.deep_shrink_above, parameters.deep_shrink)


def scale_size(size: Size, scale: float) -> Size:
    """Scale both sides and round down, as NAI's page does; 1e-6 corrects the float error of scales like 1.15."""
    width, height = (int(side * scale + 1e-6) for side in size)
    return width, height


def _enhanced_size(size: Size, scale: float) -> Size:
    width, height = scale_size(size, scale)
    field, result = "parameters.enhance.scale", f"{scale:g} makes {size[0]}x{size[1]} {width}x{height}"
    if width % 32 or height % 32 or min(width, height) < 64:
        raise Rejected(field, f"{result}; both sides must be multiples of 32, at least 64")
    if width * height > LARGEST_AREA:
        raise Rejected(field, f"{result}, {width * height} pixels; at most {LARGEST_AREA}")
    return width, height


def count_seeds(seed: int, samples: int) -> tuple[int, ...]:
    """Seeds of a request's images: image i has `seed + i`."""
    return tuple((seed + index) % SEED_MODULUS for index in range(samples))


def first_given(*choices: T | None) -> T:
    """Return the first value that is not None."""
    return next(choice for choice in choices if choice is not None)
