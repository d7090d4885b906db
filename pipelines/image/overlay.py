"""The picture laid back over what was drawn into it: nothing outside the mask changes, and no seam shows inside."""

from typing import Any, cast

import numpy as np
from scipy import ndimage  # pyright: ignore[reportMissingTypeStubs]

from pipelines.job import InitImage
from pipelines.types import Pixels

Inside = np.ndarray[tuple[int, int], np.dtype[np.bool_]]
Shares = np.ndarray[tuple[int, int], np.dtype[np.float64]]
SEAM = 16
"""How many pixels inside the mask's edge the new picture takes to come up."""


def apply_overlay(drawn: Pixels, source: InitImage) -> Pixels:
    """A drawn picture under its source, as the source asks.

    Args:
        drawn: (height, width, 3).
        source: its overlay "soft" lets the new picture come up inside the mask, "hard" cuts at the edge, "none" and
            a source without a mask leave everything as it was drawn.
    """
    if source.mask is None or source.overlay == "none":
        return drawn
    inside = expand_mask(source.mask, *drawn.shape[:2])
    share = inside.astype(float) if source.overlay == "hard" else feather(inside)
    own = np.frombuffer(source.image.rgb, np.uint8).reshape(drawn.shape)
    mixed = own + share[..., None] * (drawn.astype(float) - own)
    return mixed.round().astype(np.uint8)


def expand_mask(mask: bytes, height: int, width: int) -> Inside:
    """The pixels under a source's mask, which were drawn anew."""
    places = np.frombuffer(mask, np.uint8).reshape(height // 8, width // 8) > 0
    return places.repeat(8, axis=0).repeat(8, axis=1)


def feather(inside: Inside) -> Shares:
    """From 0 at the mask's edge to 1 well inside, without a kink; the picture's own edge is none of the mask's."""
    framed = np.pad(inside, SEAM, mode="edge")
    depth = cast("Shares", cast("Any", ndimage).distance_transform_edt(framed))[SEAM:-SEAM, SEAM:-SEAM]
    share = ((depth - 0.5) / SEAM).clip(0.0, 1.0)
    return share * share * (3 - 2 * share)
