"""A supersampled canvas for flat areas and lines, and a pen that draws on it in its own units."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

from demo.palette import Color, darken, mix
from pipelines.types import Pixels, Size

Point = tuple[float, float]
SUPERSAMPLING = 3
"""Canvas pixels per image pixel and axis. Averaging them is the only antialiasing."""


@dataclass(frozen=True, slots=True)
class DrawingStyle:
    """How areas and lines are drawn.

    Attributes:
        adjust_color: Maps the color of every area and line.
        line_width: Outline width in hundredths of a unit, 0 for no outlines.
        ink: Color of the outlines; None uses a darker shade of the filled area.
        shaded: Whether areas have a gradient from light at the top to dark at the bottom.
        wobble: Displacement of the points of sketched lines, in units.
    """

    adjust_color: Callable[[Color], Color] = lambda color: color
    line_width: float = 5.0
    ink: Color | None = None
    shaded: bool = False
    wobble: float = 0.0


_T = np.arange(8)[:, None] / 8
CATMULL_ROM = (
    np.hstack([-_T + 2 * _T**2 - _T**3, 2 - 5 * _T**2 + 3 * _T**3, _T + 4 * _T**2 - 3 * _T**3, _T**3 - _T**2])
    / 2
)
"""Weights (8, 4) of four neighboring points for eight points of the curve between the middle two."""


class Canvas:
    """The canvas of one image.

    Args:
        width, height: Image size in pixels.
        rng: Source of the displacements of wobbling lines.
    """

    def __init__(
        self, width: int, height: int, background: Color, style: DrawingStyle, rng: np.random.Generator
    ) -> None:
        self.size = (width, height)
        self.style = style
        self._rng = rng
        self._image = Image.new("RGB", (width * SUPERSAMPLING, height * SUPERSAMPLING), background)
        self._draw = ImageDraw.Draw(self._image)

    def to_pixels(self) -> Pixels:
        """Return the image at its own size, RGB uint8 (height, width, 3)."""
        return np.asarray(self._image.reduce(SUPERSAMPLING)).copy()

    def fill_gradient(self, top: Color, bottom: Color) -> None:
        """Fill the canvas with a vertical gradient."""
        self._image.paste(_make_gradient(top, bottom, self._image.size))

    def draw_area(self, points: Sequence[Point], color: Color, unit: float, width: float = 1.0) -> None:
        """Draw a filled polygon with its outline.

        Args:
            points: Corners in image pixels.
            unit: Image pixels per unit of the line width.
            width: Outline width as a multiple of the style's, 0 for no outline.
        """
        style = self.style
        fill = style.adjust_color(color)
        corners = [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in points]
        if style.shaded:
            self._fill_shaded(corners, fill)
        else:
            self._draw.polygon(corners, fill=fill)
        if style.line_width * width > 0:
            self.draw_line([*points, points[0], points[1]], style.ink or darken(fill, 0.45), unit, width)

    def draw_line(self, points: Sequence[Point], color: Color, unit: float, width: float = 1.0) -> None:
        """Draw an open line through points in image pixels; see `draw_area` for `unit` and `width`."""
        thickness = max(1, round(max(self.style.line_width, 3.0) * width * unit / 100 * SUPERSAMPLING))
        for _ in range(2 if self.style.wobble else 1):
            corners = [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in self._add_wobble(points, unit)]
            self._draw.line(corners, fill=color, width=thickness, joint="curve")

    def _add_wobble(self, points: Sequence[Point], unit: float) -> list[Point]:
        if not self.style.wobble:
            return list(points)
        phases = self._rng.uniform(0, 2 * pi, 2)
        reach = self.style.wobble * unit
        return [
            (x + reach * sin(0.35 * k + phases[0]), y + reach * cos(0.3 * k + phases[1]))
            for k, (x, y) in enumerate(points)
        ]

    def _fill_shaded(self, corners: Sequence[Point], fill: Color) -> None:
        left, right = min(x for x, _ in corners), max(x for x, _ in corners)
        top, bottom = min(y for _, y in corners), max(y for _, y in corners)
        offset = int(left), int(top)
        size = max(1, int(right) - offset[0] + 1), max(1, int(bottom) - offset[1] + 1)
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).polygon([(x - offset[0], y - offset[1]) for x, y in corners], fill=255)
        light, dark = mix(fill, (255, 255, 255), 0.25), darken(fill, 0.78)
        self._image.paste(_make_gradient(light, dark, size), offset, mask)


def _make_gradient(top: Color, bottom: Color, size: Size) -> Image.Image:
    width, height = size
    ramp = np.linspace(0, 1, height)[:, None, None]
    rows = (np.array(top) * (1 - ramp) + np.array(bottom) * ramp).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(rows, (height, width, 3))))


class Pen:
    """Draws on a canvas in its own units.

    The methods take a `width`, a multiple of the style's line width; 0 draws no outline.

    Args:
        origin: Position of (0, 0) in image pixels; x points right, y down.
        unit: Image pixels per unit.
        flip: Mirror everything left to right.
    """

    def __init__(self, canvas: Canvas, origin: Point, unit: float, flip: bool = False) -> None:
        self.canvas, self.origin, self.unit = canvas, origin, unit
        self._x_sign = -1.0 if flip else 1.0

    def _to_pixels(self, points: Sequence[Point]) -> list[Point]:
        x0, y0 = self.origin
        return [(x0 + self._x_sign * x * self.unit, y0 + y * self.unit) for x, y in points]

    def polygon(self, points: Sequence[Point], color: Color, width: float = 1.0) -> None:
        """Draw a filled polygon."""
        self.canvas.draw_area(self._to_pixels(points), color, self.unit, width)

    def blob(self, points: Sequence[Point], color: Color, width: float = 1.0) -> None:
        """Draw a filled area whose outline is a smooth curve through the points."""
        self.polygon(interpolate(points, closed=True), color, width)

    def ellipse(self, center: Point, rx: float, ry: float, color: Color, width: float = 1.0) -> None:
        """Draw a filled ellipse."""
        x, y = center
        angles = [2 * pi * k / 40 for k in range(40)]
        self.polygon([(x + rx * cos(angle), y + ry * sin(angle)) for angle in angles], color, width)

    def line(self, points: Sequence[Point], color: Color, width: float = 1.0) -> None:
        """Draw a smooth line through the points."""
        color = self.canvas.style.adjust_color(color)
        self.canvas.draw_line(self._to_pixels(interpolate(points, closed=False)), color, self.unit, width)


def interpolate(points: Sequence[Point], closed: bool) -> list[Point]:
    """Return points on the Catmull-Rom curve through the given ones, eight per segment."""
    corners, count = np.array(points), len(points)
    segments = count if closed else count - 1
    neighbors = np.arange(segments)[:, None] + np.arange(-1, 3)
    neighbors = neighbors % count if closed else neighbors.clip(0, count - 1)
    curve = np.einsum("tk,nkc->ntc", CATMULL_ROM, corners[neighbors]).reshape(-1, 2)
    return [(x, y) for x, y in (curve if closed else np.concatenate([curve, corners[-1:]])).tolist()]
