"""What is done to a whole picture after it is drawn: turning it grey, or spoiling it."""

from io import BytesIO

import numpy as np
from PIL import Image, ImageFilter

from pipelines.types import Pixels


def to_monochrome(pixels: Pixels) -> Pixels:
    """The picture in greys."""
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    return np.repeat(grey[..., None], 3, axis=2)


def degrade(pixels: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    """A bad copy: few pixels, blurred, packed hard as JPEG, colors faded and edges fringed.

    Args:
        severity: 0 to 1, from poor to very bad.
    """
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    share = 1 / (2.5 + 4 * severity)
    small = max(8, round(width * share)), max(8, round(height * share))
    image = image.resize(small, Image.Resampling.BILINEAR).resize((width, height), Image.Resampling.BILINEAR)
    image = image.filter(ImageFilter.GaussianBlur(max(width, height) * (0.002 + 0.006 * severity)))
    file = BytesIO()
    image.save(file, "JPEG", quality=round(22 - 16 * severity))
    spoilt = np.asarray(Image.open(BytesIO(file.getvalue()))).astype(np.float32)
    spoilt = spoilt * (1 - 0.12 * severity) + 128 * 0.12 * severity
    spoilt += rng.normal(0, 1 + 3 * severity, spoilt.shape[:2])[..., None]
    shift = max(1, round(width * 0.006 * severity))
    spoilt[:, shift:, 0] = spoilt[:, :-shift, 0]
    return spoilt.round().clip(0, 255).astype(np.uint8)
