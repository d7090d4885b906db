"""A sheet to draw flat areas and lines on, finer than the picture it becomes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

from demo.palette import Color, darken, mix
from pipelines.types import Pixels

Point = tuple[float, float]
SUPERSAMPLING = 3
"""How many times finer the sheet is; its squares are averaged, which is the only smoothing there is."""


@dataclass(frozen=True, slots=True)
class DrawingStyle:
    """How things are drawn: what becomes of a color, how wide lines are, and whether areas shade downwards.

    `line` is in hundredths of a unit, 0 for none; `wobble` moves the points of sketched lines.
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
"""What four neighbours contribute to the eight points between the middle two."""


class Canvas:
    """A sheet of one picture.

    Args:
        width, height: of the picture, in pixels.
        rng: moves the points of wobbly lines.
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
        """The picture, RGB uint8 (height, width, 3)."""
        return np.asarray(self._image.reduce(SUPERSAMPLING)).copy()

    def fill_gradient(self, top: Color, bottom: Color) -> None:
        """Fill everything, from one color above to another below."""
        height = self._image.height
        ramp = np.linspace(0, 1, height)[:, None, None]
        rows = np.array(top) * (1 - ramp) + np.array(bottom) * ramp
        whole = np.broadcast_to(rows.round().astype(np.uint8), (height, self._image.width, 3))
        self._image.paste(Image.fromarray(np.ascontiguousarray(whole)))

    def draw_area(self, points: Sequence[Point], color: Color, unit: float, width: float = 1.0) -> None:
        """A filled area with its outline, in pixels; `unit` is what line widths are measured in."""
        manner = self.style
        fill = manner.adjust_color(color)
        corners = [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in points]
        if manner.shaded:
            self._fill_shaded(corners, fill)
        else:
            self._draw.polygon(corners, fill=fill)
        if manner.line_width * width > 0:
            self.draw_line([*points, points[0], points[1]], manner.ink or darken(fill, 0.45), unit, width)

    def draw_line(self, points: Sequence[Point], color: Color, unit: float, width: float = 1.0) -> None:
        """An open line, in pixels."""
        width = max(1, round(max(self.style.line_width, 3.0) * width * unit / 100 * SUPERSAMPLING))
        for _ in range(2 if self.style.wobble else 1):
            corners = [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in self._add_wobble(points, unit)]
            self._draw.line(corners, fill=color, width=width, joint="curve")

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
        place = int(left), int(top)
        size = max(1, int(right) - place[0] + 1), max(1, int(bottom) - place[1] + 1)
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).polygon([(x - place[0], y - place[1]) for x, y in corners], fill=255)
        light, dark = mix(fill, (255, 255, 255), 0.25), darken(fill, 0.78)
        ramp = np.linspace(0, 1, size[1])[:, None, None]
        rows = (np.array(light) * (1 - ramp) + np.array(dark) * ramp).round().astype(np.uint8)
        whole = np.ascontiguousarray(np.broadcast_to(rows, (size[1], size[0], 3)))
        self._image.paste(Image.fromarray(whole), place, mask)


class Pen:
    """Draws on a canvas in units of its own.

    Args:
        origin: where (0, 0) is, in pixels; x goes right, y down.
        unit: how many pixels 1 is.
        flip: draw everything mirrored.
    """

    def __init__(self, canvas: Canvas, origin: Point, unit: float, flip: bool = False) -> None:
        self.canvas, self.origin, self.unit = canvas, origin, unit
        self._turn = -1.0 if flip else 1.0

    def _to_pixels(self, points: Sequence[Point]) -> list[Point]:
        x0, y0 = self.origin
        return [(x0 + self._turn * x * self.unit, y0 + y * self.unit) for x, y in points]

    def polygon(self, points: Sequence[Point], color: Color, width: float = 1.0) -> None:
        """A filled area with straight sides."""
        self.canvas.draw_area(self._to_pixels(points), color, self.unit, width)

    def blob(self, points: Sequence[Point], color: Color, width: float = 1.0) -> None:
        """A filled area that runs smoothly through its points."""
        self.polygon(smooth(points, closed=True), color, width)

    def ellipse(self, center: Point, rx: float, ry: float, color: Color, width: float = 1.0) -> None:
        """A filled ellipse."""
        x, y = center
        turns = [2 * pi * k / 40 for k in range(40)]
        self.polygon([(x + rx * cos(turn), y + ry * sin(turn)) for turn in turns], color, width)

    def line(self, points: Sequence[Point], color: Color, width: float = 1.0) -> None:
        """A line that runs smoothly through its points."""
        tone = self.canvas.style.adjust_color(color)
        self.canvas.draw_line(self._to_pixels(smooth(points, closed=False)), tone, self.unit, width)


def smooth(points: Sequence[Point], closed: bool) -> list[Point]:
    """Points on a Catmull-Rom curve through the given ones."""
    corners, count = np.array(points), len(points)
    last = count if closed else count - 1
    places = np.arange(last)[:, None] + np.arange(-1, 3)
    places = places % count if closed else places.clip(0, count - 1)
    curve = np.einsum("tk,nkc->ntc", CATMULL_ROM, corners[places]).reshape(-1, 2)
    return [(x, y) for x, y in (curve if closed else np.concatenate([curve, corners[-1:]])).tolist()]
