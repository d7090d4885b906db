"""What a picture of the demo's world shows, told from its pixels alone; light skin and the plain style are assumed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy import ndimage as scipy_ndimage

from demo.canvas import Canvas, DrawingStyle, Pen
from demo.palette import EYES, HAIR, INK, PLAIN, SKIN, Color
from demo.shapes import KINDS, Shape, draw_shape
from pipelines.image import color_match
from pipelines.types import Pixels

ndimage: Any = scipy_ndimage
"""Its types say less than they should."""
Mask = np.ndarray[tuple[int, int], np.dtype[np.bool_]]
FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
COLOR_TOLERANCE = 13.0
"""CIELAB units within which a color is taken for another."""
WARM = ("white", "yellow", "pink", "grey", "orange", "brown")
WHITE_SHARE = 0.45
"""What has so much of a color beside white is not white: a house's walls are paler than its roof, and larger."""
TEMPLATE_SIZE = 40


@dataclass(frozen=True, slots=True)
class Face:
    """The box of a face's visible skin in pixels."""

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

    def crop(
        self, picture: FloatArray, rows: tuple[float, float], columns: tuple[float, float]
    ) -> FloatArray:
        """The pixels between shares of the face's box, as (N, 3)."""
        top, bottom = (max(0, round(self.top + share * self.height)) for share in rows)
        left, right = (max(0, round(self.left + share * self.width)) for share in columns)
        return picture[top:bottom, left:right].reshape(-1, 3)


def to_lab(colors: object) -> FloatArray:
    """sRGB bytes (..., 3) to CIELAB under D65."""
    return color_match.to_lab(np.asarray(colors, np.uint8)).astype(np.float64)


def color_distance(picture: FloatArray, color: object) -> FloatArray:
    """How far each pixel of a CIELAB picture is from a color given in bytes."""
    return np.linalg.norm(picture - to_lab(color), axis=-1)


def find_nearest_word(color: object, words: Mapping[str, Color]) -> str:
    """The word for the color nearest to one in CIELAB."""
    return [*words][int(_nearest_index(np.asarray(color), words))]


def _nearest_index(colors: FloatArray, words: Mapping[str, Color]) -> Any:  # noqa: ANN401 - an index or an array of them
    """Which of the words each CIELAB color (..., 3) is nearest to."""
    return np.linalg.norm(colors[..., None, :] - to_lab([*words.values()]), axis=-1).argmin(axis=-1)


def vote_color(pixels: FloatArray, words: Mapping[str, Color], others: Iterable[object] = ()) -> str | None:
    """The word that most CIELAB pixels (N, 3) are nearest to, without those nearer to one of the others."""
    votes = _count_votes(pixels, words, others)
    return max(votes, key=votes.__getitem__, default=None)


def _count_votes(
    pixels: FloatArray, words: Mapping[str, Color], others: Iterable[object] = ()
) -> dict[str, int]:
    """How many pixels are nearest to each of the words that have any."""
    if not len(pixels):
        return {}
    places = np.concatenate([to_lab([*words.values()]), *(to_lab([other]) for other in others)])
    apart = np.linalg.norm(pixels[:, None] - places, axis=-1)
    counts = np.bincount(apart.argmin(axis=1)[apart.min(axis=1) < 2 * COLOR_TOLERANCE], minlength=len(places))
    return {word: int(count) for word, count in zip(words, counts, strict=False) if count}


def edge_pixels(picture: FloatArray) -> FloatArray:
    """The pixels (N, 3) along the top and the upper halves of the sides, where nothing but background is."""
    height, width = picture.shape[:2]
    deep = max(2, min(height, width) // 50)
    strips = (picture[:deep], picture[: height // 2, :deep], picture[: height // 2, -deep:])
    return np.concatenate([strip.reshape(-1, 3) for strip in strips])


def measure_background(picture: FloatArray) -> FloatArray:
    """The background's color in CIELAB: the median of the rim."""
    return np.median(edge_pixels(picture), axis=0)


def detect_background(pixels: Pixels) -> str:
    """The word for the background's color."""
    return find_nearest_word(measure_background(to_lab(pixels)), PLAIN)


def detect_faces(picture: FloatArray) -> list[Face]:
    """The faces of a CIELAB picture, the largest first; hands, necks and legs are too small to be taken for one."""
    near = ndimage.gaussian_filter(_is_skin(picture).astype(float), picture.shape[0] / 75)
    return [_locate_face(box, part) for box, part in _find_boxed_components(near > 0.25, least=0.4)]


def _is_skin(picture: FloatArray) -> Mask:
    """Pixels nearer to light skin than to whatever else is about as light or as warm, and to ink."""
    near = color_distance(picture, SKIN["light"])
    others = [
        *(PLAIN[word] for word in WARM),
        *(HAIR[word] for word in ("white", "blonde", "pink", "orange")),
        INK,
    ]
    return (near < 2 * COLOR_TOLERANCE) & (
        near < np.min([color_distance(picture, other) for other in others], axis=0)
    )


def _locate_face(box: tuple[slice, slice], part: Mask) -> Face:
    """A face's box from its width and its jaw, the lowest row that is wide: what is above eyes may be covered."""
    rows, columns = box
    spans = [np.ptp(np.flatnonzero(row)) if row.any() else 0 for row in part]
    wide = columns.stop - columns.start
    jaw = rows.start + max((k for k, span in enumerate(spans) if 2 * span > wide), default=len(spans))
    return Face(max(0, round(jaw - 0.7 * wide)), round(jaw + 0.07 * wide), columns.start, columns.stop)


def detect_hair(picture: FloatArray, face: Face) -> str | None:
    """The word for the hair above a face."""
    above = face.crop(picture, (-0.6, -0.1), (0.2, 0.8))
    return vote_color(
        above[np.linalg.norm(above - measure_background(picture), axis=1) > COLOR_TOLERANCE],
        HAIR,
        [SKIN["light"]],
    )


def detect_shirt(picture: FloatArray, face: Face) -> str | None:
    """The word for the shirt below a face."""
    return vote_color(face.crop(picture, (1.35, 1.7), (0.25, 0.75)), PLAIN, [SKIN["light"]])


def detect_eyes(picture: FloatArray, face: Face) -> str | None:
    """The word for the color of a face's eyes."""
    inside = face.crop(picture, (0.15, 0.68), (0.1, 0.9))
    return vote_color(inside, EYES, [SKIN["light"], INK, (255, 255, 255), (0, 0, 0), (250, 175, 165)])


def segment_subject(pixels: Pixels) -> Mask:
    """Everything that is not background."""
    picture = to_lab(pixels)
    apart = np.linalg.norm(picture - measure_background(picture), axis=-1) > COLOR_TOLERANCE
    return ndimage.binary_opening(apart, iterations=max(1, pixels.shape[0] // 256))


def find_components(mask: Mask) -> list[Mask]:
    """The connected parts of a mask, cut to their boxes, but for crumbs; the largest first."""
    return [part for _, part in _find_boxed_components(mask, least=0.2)]


def _find_boxed_components(mask: Mask, least: float) -> list[tuple[tuple[slice, slice], Mask]]:
    """The connected parts with their boxes, the largest first; none has less than `least` of the largest's area."""
    labels, count = ndimage.label(mask)
    if not count:
        return []
    areas = np.bincount(labels.ravel())[1:]
    boxes = ndimage.find_objects(labels)
    kept = [k for k in np.argsort(-areas) if areas[k] > max(least * areas.max(), 0.002 * mask.size)]
    return [(boxes[k], labels[boxes[k]] == k + 1) for k in kept]


def detect_shape(pixels: Pixels) -> str | None:
    """The kind of the largest thing in a picture: that of the template it covers best."""
    found = find_components(segment_subject(pixels))
    if not found:
        return None
    own, wide = _resize_to_template(found[0]), found[0].shape[1] / found[0].shape[0]

    def likeness(template: tuple[Mask, float]) -> float:
        covered = float((own & template[0]).sum() / (own | template[0]).sum())
        return covered - 0.3 * abs(np.log(wide / template[1]))

    scores = [(max(map(likeness, kinds)), kind) for kind, kinds in build_templates().items()]
    return max(scores)[1]


@cache
def build_templates() -> dict[str, list[tuple[Mask, float]]]:
    """Each kind's outline as the generator draws it, both ways round, with its width by height."""
    found: dict[str, list[tuple[Mask, float]]] = {}
    for kind in KINDS:
        for flip in (False, True):
            canvas = Canvas(200, 200, (255, 255, 255), DrawingStyle(), np.random.default_rng(0))
            draw_shape(Pen(canvas, (100, 100), 80, flip), Shape(kind, "red"))
            mask = find_components(segment_subject(canvas.to_pixels()))[0]
            found.setdefault(kind, []).append((_resize_to_template(mask), mask.shape[1] / mask.shape[0]))
    return found


def _resize_to_template(mask: Mask) -> Mask:
    """A mask stretched to the template's size."""
    filled = ndimage.binary_fill_holes(mask)
    rows = (np.arange(TEMPLATE_SIZE) + 0.5) * mask.shape[0] / TEMPLATE_SIZE
    columns = (np.arange(TEMPLATE_SIZE) + 0.5) * mask.shape[1] / TEMPLATE_SIZE
    return np.asarray(filled)[rows.astype(int)[:, None], columns.astype(int)]


def detect_color(pixels: Pixels) -> str | None:
    """The word for the color of the things in a picture, without their outlines."""
    inner = ndimage.binary_erosion(segment_subject(pixels), iterations=max(2, pixels.shape[0] // 100))
    votes = _count_votes(to_lab(pixels)[inner], PLAIN)
    pale = votes.get("white", 0)
    if any(count > WHITE_SHARE * pale for word, count in votes.items() if word != "white"):
        votes.pop("white", None)
    return max(votes, key=votes.__getitem__, default=None)


def measure_luminance(pixels: Pixels) -> float:
    """The background's mean luminance of sRGB values, 0 for black and 1 for white."""
    return float((edge_pixels(pixels.astype(float)) @ np.array([0.2126, 0.7152, 0.0722])).mean() / 255)


def measure_color_share(pixels: Pixels, word: str) -> float:
    """The share of a picture's pixels that are nearer to one plain color than to the others."""
    return float((_nearest_index(to_lab(pixels), PLAIN) == [*PLAIN].index(word)).mean())


def measure_saturation(pixels: Pixels) -> float:
    """The mean saturation of a picture, as in HSV."""
    high, low = pixels.max(axis=2).astype(float), pixels.min(axis=2).astype(float)
    return float(((high - low) / np.maximum(high, 1)).mean())


def measure_sharpness(pixels: Pixels) -> float:
    """How steep the steepest hundredth of a picture's steps is."""
    return float(np.percentile(np.abs(np.diff(pixels.astype(float).mean(axis=2), axis=1)), 99))
