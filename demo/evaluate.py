"""Detects what an image of the demo model shows, from its pixels alone. Assumes light skin and the default style.

Arrays named `lab` are images in CIELAB (height, width, 3), those named `pixels` in sRGB bytes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy import ndimage as scipy_ndimage

from demo.canvas import Canvas, DrawingStyle, Pen
from demo.masks import Mask
from demo.palette import EYES, HAIR, INK, PLAIN, SKIN, Color
from demo.shapes import KINDS, Shape, draw_shape
from pipelines.image import color_match
from pipelines.types import Pixels

ndimage: Any = scipy_ndimage
"""Untyped, because SciPy's annotations are incomplete."""
FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
COLOR_TOLERANCE = 13.0
"""CIELAB distance up to which two colors count as the same."""
WARM_COLORS = ("white", "yellow", "pink", "grey", "orange", "brown")
COLOR_TO_WHITE = 0.45
"""A thing with this many pixels of a color for each white one is not white: the walls of `house` are pale and large."""
TEMPLATE_SIZE = 40
"""Height and width of the outline templates."""


@dataclass(frozen=True, slots=True)
class Face:
    """The bounding box of a face in pixels."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    def crop(self, lab: FloatArray, rows: tuple[float, float], columns: tuple[float, float]) -> FloatArray:
        """Return the pixels (N, 3) of a region whose bounds are given relative to the box, 0 to 1 inside it."""
        top, bottom = (max(0, round(self.top + share * self.height)) for share in rows)
        left, right = (max(0, round(self.left + share * self.width)) for share in columns)
        return lab[top:bottom, left:right].reshape(-1, 3)


def to_lab(colors: object) -> FloatArray:
    """Convert sRGB bytes (..., 3) to CIELAB under D65."""
    return color_match.to_lab(np.asarray(colors, np.uint8)).astype(np.float64)


def color_distance(lab: FloatArray, color: object) -> FloatArray:
    """Return the distance of each pixel from an sRGB color."""
    return _measure_length(lab - to_lab(color))


def _measure_length(differences: FloatArray) -> FloatArray:
    """Return the length of each vector (..., 3): np.linalg.norm to the bit, in a third of its time."""
    return np.sqrt(sum(part * part for part in np.moveaxis(differences, -1, 0)))


def find_nearest_word(color: object, words: Mapping[str, Color]) -> str:
    """Return the word for the color nearest to a CIELAB color."""
    return [*words][int(_nearest_index(np.asarray(color), words))]


def _nearest_index(colors: FloatArray, words: Mapping[str, Color]) -> Any:  # noqa: ANN401 - one or an array
    """Return the index of the word whose color is nearest, for each CIELAB color (..., 3)."""
    return _measure_length(colors[..., None, :] - to_lab([*words.values()])).argmin(axis=-1)


def vote_color(pixels: FloatArray, words: Mapping[str, Color], others: Iterable[object] = ()) -> str | None:
    """Return the word nearest to most CIELAB pixels (N, 3). Pixels nearer to one of the other colors do not count."""
    votes = _count_votes(pixels, words, others)
    return max(votes, key=votes.__getitem__, default=None)


def _count_votes(
    pixels: FloatArray, words: Mapping[str, Color], others: Iterable[object] = ()
) -> dict[str, int]:
    """Return the number of pixels nearest to each word, without words that have none."""
    if not len(pixels):
        return {}
    colors = np.concatenate([to_lab([*words.values()]), *(to_lab([other]) for other in others)])
    distances = _measure_length(pixels[:, None] - colors)
    is_near = distances.min(axis=1) < 2 * COLOR_TOLERANCE
    counts = np.bincount(distances.argmin(axis=1)[is_near], minlength=len(colors))
    return {word: int(count) for word, count in zip(words, counts, strict=False) if count}


def select_border(image: FloatArray) -> FloatArray:
    """Return the pixels (N, 3) along the top and the upper halves of the sides, which show only background."""
    height, width = image.shape[:2]
    depth = max(2, min(height, width) // 50)
    strips = (image[:depth], image[: height // 2, :depth], image[: height // 2, -depth:])
    return np.concatenate([strip.reshape(-1, 3) for strip in strips])


def measure_background(lab: FloatArray) -> FloatArray:
    """Return the background's color, the median along the border."""
    return np.median(select_border(lab), axis=0)


def detect_background(pixels: Pixels) -> str:
    """Return the word for the background's color."""
    return find_nearest_word(measure_background(to_lab(pixels)), PLAIN)


def detect_faces(lab: FloatArray) -> list[Face]:
    """Return the faces, the largest first. Hands, necks and legs are too small to count as one."""
    smoothed = ndimage.gaussian_filter(_is_skin(lab).astype(float), lab.shape[0] / 75)
    return [_locate_face(box, part) for box, part in _find_boxed_components(smoothed > 0.25, min_share=0.4)]


def _is_skin(lab: FloatArray) -> Mask:
    """Return which pixels are nearer to light skin than to ink and to all similarly light or warm colors."""
    distance = color_distance(lab, SKIN["light"])
    others = [
        *(PLAIN[word] for word in WARM_COLORS),
        *(HAIR[word] for word in ("white", "blonde", "pink", "orange")),
        INK,
    ]
    is_skin = np.asarray(distance < 2 * COLOR_TOLERANCE)
    similar = lab[is_skin]
    nearest_other = np.min([color_distance(similar, other) for other in others], axis=0)
    is_skin[is_skin] = distance[is_skin] < nearest_other
    return is_skin


def _locate_face(box: tuple[slice, slice], part: Mask) -> Face:
    """Return the box of a face from its width and its jaw, the lowest wide row. Hair may cover the forehead."""
    rows, columns = box
    spans = [np.ptp(np.flatnonzero(row)) if row.any() else 0 for row in part]
    width = columns.stop - columns.start
    jaw = rows.start + max((k for k, span in enumerate(spans) if 2 * span > width), default=len(spans))
    return Face(max(0, round(jaw - 0.7 * width)), round(jaw + 0.07 * width), columns.start, columns.stop)


def detect_hair(lab: FloatArray, face: Face) -> str | None:
    """Return the word for the color of the hair above a face."""
    above = face.crop(lab, (-0.6, -0.1), (0.2, 0.8))
    is_foreground = _measure_length(above - measure_background(lab)) > COLOR_TOLERANCE
    return vote_color(above[is_foreground], HAIR, [SKIN["light"]])


def detect_shirt(lab: FloatArray, face: Face) -> str | None:
    """Return the word for the color of the shirt below a face."""
    return vote_color(face.crop(lab, (1.35, 1.7), (0.25, 0.75)), PLAIN, [SKIN["light"]])


def detect_eyes(lab: FloatArray, face: Face) -> str | None:
    """Return the word for the color of a face's eyes."""
    inside = face.crop(lab, (0.15, 0.68), (0.1, 0.9))
    return vote_color(inside, EYES, [SKIN["light"], INK, (255, 255, 255), (0, 0, 0), (250, 175, 165)])


def segment_subject(pixels: Pixels) -> Mask:
    """Return the mask of everything that is not background."""
    lab = to_lab(pixels)
    is_foreground = _measure_length(lab - measure_background(lab)) > COLOR_TOLERANCE
    return ndimage.binary_opening(is_foreground, iterations=max(1, pixels.shape[0] // 256))


def find_components(mask: Mask) -> list[Mask]:
    """Return the connected components of a mask, cropped to their boxes, the largest first; tiny ones are left out."""
    return [part for _, part in _find_boxed_components(mask, min_share=0.2)]


def _find_boxed_components(mask: Mask, min_share: float) -> list[tuple[tuple[slice, slice], Mask]]:
    """Return components with their boxes. Each has at least `min_share` of the largest one's area."""
    labels, count = ndimage.label(mask)
    if not count:
        return []
    areas = np.bincount(labels.ravel())[1:]
    boxes = ndimage.find_objects(labels)
    kept = [k for k in np.argsort(-areas) if areas[k] > max(min_share * areas.max(), 0.002 * mask.size)]
    return [(boxes[k], labels[boxes[k]] == k + 1) for k in kept]


def detect_shape(pixels: Pixels) -> str | None:
    """Return the kind of the largest thing in an image, that of the most similar template."""
    components = find_components(segment_subject(pixels))
    if not components:
        return None
    outline, aspect = _build_template(components[0])

    def measure_similarity(template: tuple[Mask, float]) -> float:
        overlap = float((outline & template[0]).sum() / (outline | template[0]).sum())
        return overlap - 0.3 * abs(np.log(aspect / template[1]))

    scores = [(max(map(measure_similarity, pair)), kind) for kind, pair in build_templates().items()]
    return max(scores)[1]


@cache
def build_templates() -> dict[str, list[tuple[Mask, float]]]:
    """Return the templates of each kind of shape, as it is drawn and mirrored."""
    templates: dict[str, list[tuple[Mask, float]]] = {}
    for kind in KINDS:
        for flip in (False, True):
            canvas = Canvas(200, 200, (255, 255, 255), DrawingStyle(), np.random.default_rng(0))
            draw_shape(Pen(canvas, (100, 100), 80, flip), Shape(kind, "red"))
            mask = find_components(segment_subject(canvas.to_pixels()))[0]
            templates.setdefault(kind, []).append(_build_template(mask))
    return templates


def _build_template(mask: Mask) -> tuple[Mask, float]:
    """Return a mask without holes, stretched to the template size, and its width divided by its height."""
    filled = ndimage.binary_fill_holes(mask)
    rows = (np.arange(TEMPLATE_SIZE) + 0.5) * mask.shape[0] / TEMPLATE_SIZE
    columns = (np.arange(TEMPLATE_SIZE) + 0.5) * mask.shape[1] / TEMPLATE_SIZE
    outline = np.asarray(filled)[rows.astype(int)[:, None], columns.astype(int)]
    return outline, mask.shape[1] / mask.shape[0]


def detect_color(pixels: Pixels) -> str | None:
    """Return the word for the color of the things in an image, without their outlines."""
    inner = ndimage.binary_erosion(segment_subject(pixels), iterations=max(2, pixels.shape[0] // 100))
    votes = _count_votes(to_lab(pixels)[inner], PLAIN)
    white = votes.get("white", 0)
    if any(count > COLOR_TO_WHITE * white for word, count in votes.items() if word != "white"):
        votes.pop("white", None)
    return max(votes, key=votes.__getitem__, default=None)


def measure_luminance(pixels: Pixels) -> float:
    """Return the mean luma of the background (Rec. 709 weights on sRGB values), 0 for black and 1 for white."""
    return float((select_border(pixels.astype(float)) @ np.array([0.2126, 0.7152, 0.0722])).mean() / 255)


def measure_color_share(pixels: Pixels, word: str) -> float:
    """Return the share of pixels that are nearer to one plain color than to the others."""
    return float((_nearest_index(to_lab(pixels), PLAIN) == [*PLAIN].index(word)).mean())


def measure_saturation(pixels: Pixels) -> float:
    """Return the mean HSV saturation."""
    high, low = pixels.max(axis=2).astype(float), pixels.min(axis=2).astype(float)
    return float(((high - low) / np.maximum(high, 1)).mean())


def measure_sharpness(pixels: Pixels) -> float:
    """Return the 99th percentile of the differences between horizontal neighbors, in levels of gray."""
    return float(np.percentile(np.abs(np.diff(pixels.astype(float).mean(axis=2), axis=1)), 99))
