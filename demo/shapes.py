"""Plain shapes and small objects. They span about -1 to 1 in both directions; (0, 0) is the middle."""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin

from demo.canvas import Pen, Point
from demo.palette import INK, PLAIN, Color, darken, mix

LEAF: Color = (70, 160, 70)


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape with the tag `{color} {kind}`: a word of PLAIN and a key of KINDS."""

    kind: str
    color: str

    def tags(self) -> list[str]:
        """Return the shape's only tag."""
        return [f"{self.color} {self.kind}"]


def draw_shape(pen: Pen, shape: Shape) -> None:
    """Draw a shape or an object."""
    KINDS[shape.kind](pen, PLAIN[shape.color])


def regular_polygon(
    count: int, outer: float, inner: float | None = None, start: float = -pi / 2
) -> list[Point]:
    """Return the corners of a regular polygon, or of a star if there is an inner radius.

    Args:
        start: Angle of the first corner in radians.
    """
    radii = [outer] if inner is None else [outer, inner]
    total = count * len(radii)
    return [
        (
            radii[k % len(radii)] * cos(start + 2 * pi * k / total),
            radii[k % len(radii)] * sin(start + 2 * pi * k / total),
        )
        for k in range(total)
    ]


def _draw_circle(pen: Pen, color: Color) -> None:
    pen.ellipse((0, 0), 0.95, 0.95, color)


def _draw_square(pen: Pen, color: Color) -> None:
    pen.polygon([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)], color)


def _draw_triangle(pen: Pen, color: Color) -> None:
    pen.polygon([(0, -0.95), (1.0, 0.8), (-1.0, 0.8)], color)


def _draw_star(pen: Pen, color: Color) -> None:
    pen.polygon(regular_polygon(5, 1.05, 0.45), color)


def _draw_heart(pen: Pen, color: Color) -> None:
    angles = [2 * pi * k / 60 for k in range(60)]
    points = [
        (sin(t) ** 3, -(13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) / 15.5) for t in angles
    ]
    pen.polygon(points, color)


def _draw_moon(pen: Pen, color: Color) -> None:
    outer = [(0.95 * cos(t), 0.95 * sin(t)) for t in (pi * (0.25 + 1.5 * k / 40) for k in range(41))]
    inner = [
        (0.42 + 0.717 * cos(t), 0.717 * sin(t)) for t in (pi * (1.614 - 1.228 * k / 40) for k in range(41))
    ]
    pen.polygon([*outer, *inner], color)


def _draw_flower(pen: Pen, color: Color) -> None:
    pen.line([(0, 0.1), (0.04, 0.6), (0, 1.05)], darken(LEAF, 0.8), 2.5)
    pen.blob([(0.02, 0.8), (0.3, 0.55), (0.5, 0.62), (0.3, 0.82)], LEAF)
    for x, y in regular_polygon(5, 0.42):
        pen.ellipse((x, y - 0.3), 0.33, 0.33, color)
    pen.ellipse((0, -0.3), 0.22, 0.22, (245, 190, 50))


def _draw_apple(pen: Pen, color: Color) -> None:
    right = [(0, -0.5), (0.4, -0.68), (0.85, -0.35), (0.85, 0.3), (0.5, 0.88), (0.15, 0.9)]
    pen.blob([*right, (0, 0.84), *((-x, y) for x, y in reversed(right) if x)], color)
    pen.line([(0, -0.5), (0.03, -0.75), (0.12, -0.95)], (110, 70, 40), 2.5)
    pen.blob([(0.1, -0.72), (0.35, -0.98), (0.62, -0.92), (0.38, -0.68)], LEAF)


def _draw_cat(pen: Pen, color: Color) -> None:
    ink = INK if sum(color) > 120 else (235, 235, 235)
    pen.blob([(0.35, 0.75), (0.8, 0.8), (0.95, 0.45), (1.02, 0.2), (0.85, 0.2), (0.75, 0.55)], color)
    pen.blob([(0, 0.0), (0.42, 0.3), (0.55, 0.95), (0, 1.02), (-0.55, 0.95), (-0.42, 0.3)], color)
    for s in (-1, 1):
        pen.polygon([(s * 0.15, -0.75), (s * 0.55, -1.05), (s * 0.62, -0.45)], color)
    pen.blob(
        [
            (0, -0.82),
            (0.5, -0.68),
            (0.68, -0.28),
            (0.4, 0.08),
            (0, 0.16),
            (-0.4, 0.08),
            (-0.68, -0.28),
            (-0.5, -0.68),
        ],
        color,
    )
    for s in (-1, 1):
        pen.ellipse((s * 0.27, -0.35), 0.08, 0.12, ink, width=0)
    pen.line([(-0.12, -0.1), (-0.05, -0.04), (0, -0.12), (0.05, -0.04), (0.12, -0.1)], ink, 0.8)


def _draw_house(pen: Pen, color: Color) -> None:
    pen.polygon(
        [(-0.75, -0.15), (0.75, -0.15), (0.75, 0.95), (-0.75, 0.95)], mix(color, (255, 255, 255), 0.65)
    )
    pen.polygon([(0, -1.0), (1.0, -0.1), (-1.0, -0.1)], color)
    pen.polygon([(-0.18, 0.4), (0.18, 0.4), (0.18, 0.95), (-0.18, 0.95)], darken(color, 0.7))
    for x in (-0.48, 0.48):
        pen.polygon([(x - 0.15, 0.15), (x + 0.15, 0.15), (x + 0.15, 0.45), (x - 0.15, 0.45)], (190, 225, 245))


KINDS: dict[str, Callable[[Pen, Color], None]] = {
    "circle": _draw_circle,
    "square": _draw_square,
    "triangle": _draw_triangle,
    "star": _draw_star,
    "heart": _draw_heart,
    "moon": _draw_moon,
    "flower": _draw_flower,
    "apple": _draw_apple,
    "cat": _draw_cat,
    "house": _draw_house,
}
