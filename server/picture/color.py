"""Converting decoded pixels to sRGB, which is what every model and every file written here means by a color."""

from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

from server.picture.icc import SRGB_CURVE, SRGB_PRIMARIES, build_profile
from server.picture.parts import LARGEST_PROFILE

MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
"""Pillow's mode for pixels in the color space of a profile; pixels in another mode ignore it, as in browsers."""
LEVELS = 9
"""Colors per channel on which a profile is compared with sRGB."""


def convert_to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Return an image of mode L, RGB or CMYK, perhaps with alpha, as RGB or RGBA in sRGB.

    A profile that means sRGB changes no pixel, and one that is broken or does not fit counts as sRGB.
    """
    has_alpha = image.mode in ("LA", "RGBA")
    mode = image.mode[:-1] if has_alpha else image.mode
    transform = _build_transform(profile, mode) if profile else None
    if transform is None:
        return change_mode(image, "RGBA" if has_alpha else "RGB")
    rgb = _apply(change_mode(image, mode), transform)
    if has_alpha:
        rgb.putalpha(image.getchannel("A"))
    return rgb


def change_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return an image in a mode: itself if it has that mode already, where Pillow would copy it."""
    return image if image.mode == mode else image.convert(mode)


def _build_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from a profile to sRGB; None if it is not needed or not possible."""
    if MODES.get(profile[16:20]) != mode or len(profile) > LARGEST_PROFILE:
        return None
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        intent = ImageCms.Intent(min(ImageCms.getDefaultIntent(source), 3))
        target = ImageCms.ImageCmsProfile(BytesIO(build_profile(SRGB_PRIMARIES, SRGB_CURVE)))
        transform = ImageCms.buildTransform(source, target, mode, "RGB", intent)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return None if _is_identity(transform, mode) else transform


def _apply(colors: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    converted = ImageCms.applyTransform(colors, transform)
    assert converted is not None
    return converted


def _is_identity(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Return whether a transform changes colors by one level at most, which is rounding."""
    if mode == "CMYK":
        return False
    samples = _sample_colors(mode)
    before, after = (
        np.asarray(image, np.int16) for image in (samples.convert("RGB"), _apply(samples, transform))
    )
    return bool(np.abs(before - after).max() <= 1)


@cache
def _sample_colors(mode: str) -> Image.Image:
    """Return an image of colors evenly spread: every gray, or LEVELS of each channel."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, LEVELS).astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3))
