"""What kind of picture is asked for, and the pictures and passes that go with it: img2img, infill, Enhance."""

from collections.abc import Callable
from typing import Literal, TypeVar

from pipelines.job import SEED_MODULUS, Enhance, InitImage, RgbImage
from pipelines.sampling import halving
from pipelines.types import Size
from server.config.profiles import Profile
from server.engine.model import ServedModel
from server.errors import Rejected
from server.request import images as sources
from server.request.schema import (
    LARGEST_AREA,
    GenerateRequest,
    Parameters,
    read_enhancing,
    read_infilling,
    read_starting,
)

MAGNITUDES = {1: (0.2, 0.0), 2: (0.4, 0.0), 3: (0.5, 0.0), 4: (0.6, 0.0), 5: (0.7, 0.1)}
"""Strength and noise of Enhance's magnitudes (NAI's page, 2023 to 2026)."""
Task = Literal["generate", "img2img", "infill"]
T = TypeVar("T")


def task(request: GenerateRequest) -> Task:
    """What is asked for; without an action, or against it, the pictures that came tell.

    Raises:
        Rejected: a picture that is needed is missing, or one came that is not offered.
    """
    asked = request.parameters
    for name, value in (
        ("reference_image", asked.reference_image),
        ("reference_image_multiple", asked.reference_image_multiple),
    ):
        if value:
            raise Rejected(f"parameters.{name}", "vibe transfer is not offered by this version")
    if request.action == "infill" and not (asked.image and asked.mask):
        raise Rejected("parameters.mask", "infill needs an image and a mask")
    if request.action == "img2img" and not asked.image:
        raise Rejected("parameters.image", "img2img needs an image")
    if not asked.image:
        return "generate"
    if request.action == "infill" or (request.action is None and asked.mask):
        return "infill"
    return "img2img"


def source(asked: Parameters, kind: Task, size: Size, seed: int) -> InitImage | None:
    """The picture to start from, at the job's size; its extra noise has the first image's seed unless told.

    Raises:
        Rejected: a picture cannot be read, or what is said of it is not allowed.
    """
    if kind == "generate":
        return None
    if kind == "img2img":
        said = read_starting(asked)
        picture, seed = _picture(asked, size), first_given(said.extra_noise_seed, seed) % SEED_MODULUS
        strength, corrected = first_given(said.strength, 0.7), bool(said.color_correct)
        return InitImage(picture, strength, said.noise or 0.0, seed, color_correct=corrected)
    infill = read_infilling(asked)
    picture = _picture(asked, size)
    mask = sources.read_mask(asked.mask, "parameters.mask", *size, soft=bool(infill.soft_mask))
    overlay = infill.overlay or ("none" if infill.add_original_image is False else "soft")
    strength, corrected = infill.strength or 1.0, bool(infill.color_correct)
    return InitImage(picture, strength, mask=mask, overlay=overlay, color_correct=corrected)


def _picture(asked: Parameters, size: Size) -> RgbImage:
    return sources.read_image(asked.image, "parameters.image", *size)


def enhance(
    asked: Parameters, kind: Task, size: Size, served: ServedModel, pick_seed: Callable[[], int]
) -> Enhance | None:
    """The second pass that is asked for.

    Args:
        size: of the first pass.

    Raises:
        Rejected: it cannot be had, or what is said of it is not allowed.
    """
    if asked.enhance is None or asked.enhance is False:
        return None
    if kind != "generate":
        raise Rejected("parameters.enhance", f"goes with generate alone, not with {kind}")
    said = read_enhancing(asked)
    if said.upscaler == "network" and not served.upscales:
        raise Rejected(
            "parameters.enhance.upscaler", "no network for it is loaded; 'lanczos' is always there"
        )
    width, height = _enlarged(size, first_given(said.scale, 1.5))
    strength, noise = enhance_change(said.magnitude, said.strength, said.noise)
    seed = (said.seed or 0) % SEED_MODULUS or pick_seed()
    return Enhance(
        width,
        height,
        strength,
        noise,
        seed,
        noise_seed=seed,
        network=said.upscaler == "network",
        deep_shrink=halved(asked, served.profile, (width, height)),
        pyramid=levels(served.profile, (width, height)),
    )


def enhance_change(magnitude: int | None, strength: float | None, noise: float | None) -> tuple[float, float]:
    """Strength and noise of an Enhance; what is said of either counts before a magnitude."""
    if strength is not None:
        return strength, noise or 0.0
    if magnitude is None:
        raise Rejected("parameters.enhance", "needs a magnitude, 1 to 5, or a strength")
    return MAGNITUDES[magnitude][0], first_given(noise, MAGNITUDES[magnitude][1])


def halved(asked: Parameters, profile: Profile, size: Size) -> int:
    """How often deep shrink halves the smallest copy in a pass of this size; where it is asked for, at least once."""
    if asked.deep_shrink is False:
        return 0
    area = size[0] * size[1] / 4 ** levels(profile, size)
    times = halving.count_downscales(area, first_given(profile.deep_shrink_above, LARGEST_AREA))
    return max(1, times) if asked.deep_shrink else times


def levels(profile: Profile, size: Size) -> int:
    """How often the smallest copy is halved that a pass of this size begins with."""
    return 0 if profile.pyramid_above is None else halving.count_pyramid_levels(*size, profile.pyramid_above)


def scale_size(size: Size, scale: float) -> Size:
    """Both sides times the scale, rounded down as NAI's page does; a hair is added for scales like 1.15."""
    width, height = (int(side * scale + 1e-6) for side in size)
    return width, height


def _enlarged(size: Size, scale: float) -> Size:
    """The same, if it can be drawn."""
    width, height = scale_size(size, scale)
    field, made = "parameters.enhance.scale", f"{scale:g} makes {size[0]}x{size[1]} {width}x{height}"
    if width % 32 or height % 32 or min(width, height) < 64:
        raise Rejected(field, f"{made}; both sides must be multiples of 32, at least 64")
    if width * height > LARGEST_AREA:
        raise Rejected(field, f"{made}, {width * height} pixels; at most {LARGEST_AREA}")
    return width, height


def first_given(*choices: T | None) -> T:
    """The first value that was given at all."""
    return next(choice for choice in choices if choice is not None)
