"""A prompted tool on one image: the job for the model, and the picture from its result."""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from pipelines.types import Pixels
from server.director.canvas import Canvas, fit_canvas
from server.director.lines import find_ink
from server.director.planes import compute_luma, split_channels
from server.director.recipes import Recipe, Recipes, build_body
from server.picture.png import encode_png
from server.request.resolve import RequestPolicy, ResolvedRequest, resolve
from server.request.schema import read_request


@dataclass(frozen=True, slots=True)
class Instructions:
    """The fields that prompted tools read.

    Attributes:
        mood: the name of one, or empty.
        level: the number of `defry`.
    """

    tool: str
    prompt: str = ""
    mood: str = ""
    level: int = 0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Redraw:
    """A job for the model, and what is needed to turn its result into the tool's picture."""

    resolved: ResolvedRequest
    canvas: Canvas
    rgb: Pixels = field(repr=False)
    keep_lines: bool

    def finish(self, result: Pixels) -> Pixels:
        """Return the model's picture at the image's own size, with the image's lines if they are to be kept."""
        picture = self.canvas.cut(result)
        if not self.keep_lines:
            return picture
        ink = find_ink([compute_luma(split_channels(self.rgb))] * 3)
        return (picture * (1 - ink[..., None])).round().astype(np.uint8)


def plan_redraw(
    image: Image.Image, instructions: Instructions, source: str, recipes: Recipes, policy: RequestPolicy
) -> Redraw:
    """Return the job of a prompted tool; `source` is the prompt in the image's metadata.

    Raises:
        Rejected: the image's shape or the prompt cannot be used.
    """
    recipe, profile = recipes.recipes[instructions.tool], policy.model.profile
    default_area = profile.defaults.width * profile.defaults.height
    canvas = fit_canvas(image.size, min(default_area, profile.deep_shrink_above or default_area))
    prompts = recipes.build_prompts(instructions.tool, instructions.prompt, instructions.mood, source)
    start = encode_png(_prepare(canvas.place(image), recipe), {})
    body = build_body(
        recipe,
        prompts,
        instructions.level,
        instructions.seed,
        start,
        canvas.size,
        policy.presets,
        policy.model.id,
    )
    resolved = resolve(read_request(body), policy)
    return Redraw(resolved, canvas, np.asarray(image), recipe.keep_lines)


def _prepare(pixels: Pixels, recipe: Recipe) -> Pixels:
    """Return the init image: the image itself, or its luma on gray paper if the tool colors it."""
    if recipe.paper == 1:
        return pixels
    gray = np.asarray(Image.fromarray(pixels).convert("L"), np.float32) * recipe.paper
    return np.repeat(gray.round().astype(np.uint8)[..., None], 3, axis=2)
