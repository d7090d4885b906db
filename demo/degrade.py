"""Effects on a finished drawing: monochrome, and the degradations of a low-quality image."""

from io import BytesIO

import numpy as np
from PIL import Image, ImageFilter

from pipelines.types import Pixels


def to_monochrome(pixels: Pixels) -> Pixels:
    """Return the image in shades of gray, still with three channels."""
    gray = np.asarray(Image.fromarray(pixels).convert("L"))
    return np.repeat(gray[..., None], 3, axis=2)


def degrade(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """Return a bad copy: low resolution, blur, strong JPEG compression, faded colors, noise and color fringes.

    Args:
        severity: From 0 (poor) to 1 (very bad).
    """
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    scale = 1 / (2.5 + 4 * severity)
    small = max(8, round(width * scale)), max(8, round(height * scale))
    image = image.resize(small, Image.Resampling.BILINEAR).resize((width, height), Image.Resampling.BILINEAR)
    image = image.filter(ImageFilter.GaussianBlur(max(width, height) * (0.002 + 0.006 * severity)))
    file = BytesIO()
    image.save(file, "JPEG", quality=round(22 - 16 * severity))
    copy = np.asarray(Image.open(BytesIO(file.getvalue()))).astype(np.float32)
    copy = copy * (1 - 0.12 * severity) + 128 * 0.12 * severity
    copy += rng.normal(0, 1 + 3 * severity, copy.shape[:2])[..., None]
    shift = max(1, round(width * 0.006 * severity))
    copy[:, shift:, 0] = copy[:, :-shift, 0]
    return copy.round().clip(0, 255).astype(np.uint8)
