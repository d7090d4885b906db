"""What remains to be done to a decoded image that was drawn from another one. Needs no device."""

from pipelines.image.color_match import match_colors
from pipelines.image.overlay import apply_overlay
from pipelines.job import InitImage, Pass
from pipelines.types import Pixels


def needs_finishing(pass_: Pass) -> bool:
    """Return whether `finish_image` changes the images of a pass."""
    init = pass_.init
    if not isinstance(init, InitImage):
        return False
    return init.color_correct or (init.mask is not None and init.overlay != "none")


def finish_image(pixels: Pixels, pass_: Pass) -> Pixels:
    """Return an image of a pass in its init image's colors and under its overlay, as the pass asks for."""
    init = pass_.init
    return apply_overlay(match_colors(pixels, init), init) if isinstance(init, InitImage) else pixels
