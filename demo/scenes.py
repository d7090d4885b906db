"""The demo's world: what a picture shows, the tags that say so, and drawing it at any size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from demo.canvas import Canvas, DrawingStyle, Pen, Point
from demo.characters import Character, draw_character
from demo.degrade import degrade, to_monochrome
from demo.palette import INK, PAPER, PLAIN, Color, adjust_tone, darken, mix, to_gray
from demo.shapes import Shape, draw_shape
from pipelines.types import Pixels

STYLES: dict[str, DrawingStyle] = {
    "": DrawingStyle(),
    "flat color": DrawingStyle(line_width=0.0),
    "outline": DrawingStyle(line_width=9.0, ink=INK),
    "gradient": DrawingStyle(shaded=True),
    "sketch": DrawingStyle(
        lambda color: mix(color, PAPER, 0.6), line_width=2.5, ink=(70, 70, 80), wobble=0.025
    ),
    "monochrome": DrawingStyle(ink=INK),
    "artist:pastel": DrawingStyle(lambda color: adjust_tone(color, 0.82, 0.75), line_width=3.0),
    "artist:neon": DrawingStyle(
        lambda color: adjust_tone(color, 0.52, 2.0), line_width=6.0, ink=(25, 15, 60)
    ),
}
JITTER = 0.02
"""How far sizes and places vary where tags say nothing of them: what varies must be learned around."""
FRAMINGS = ("upper body", "full body", "chibi")


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture before it is drawn.

    Attributes:
        subjects: one or two characters, or one to three shapes of a kind, from left to right.
        framing: how much of characters is seen.
        background: a word of the palette; `fading` lightens it downwards.
        style: a key of STYLES.
        place: where a single subject is: "", "left", "right", "top", "bottom".
        spoilt: None for a good picture, else how bad it is, 0 to 1.
    """

    subjects: tuple[Character, ...] | tuple[Shape, ...]
    background: str
    framing: str = ""
    style: str = ""
    gradient_background: bool = False
    position: str = ""
    degradation: float | None = None

    @property
    def characters(self) -> tuple[Character, ...]:
        """The subjects that are characters."""
        return tuple(one for one in self.subjects if isinstance(one, Character))

    def tags(self) -> list[str]:
        """Everything a caption may say, the counts first; quality is not among it."""
        return [*self.count_tags(), *self.subject_tags(), *self.setting_tags()]

    def count_tags(self) -> list[str]:
        """How many there are of whom."""
        if not self.characters:
            first = self.subjects[0]
            assert isinstance(first, Shape)
            same = all(one == first for one in self.subjects)
            return [
                "no humans",
                *([f"{len(self.subjects)} {first.kind}s"] if same and len(self.subjects) > 1 else []),
            ]
        boys = sum(one.boy for one in self.characters)
        girls = len(self.characters) - boys
        said = [
            f"{count}{name}{'s' * (count > 1)}" for count, name in ((girls, "girl"), (boys, "boy")) if count
        ]
        return [*said, *(["solo"] if len(self.characters) == 1 else [])]

    def subject_tags(self) -> list[str]:
        """What is said of each subject, without repeating."""
        said = [tag for one in self.subjects for tag in one.tags()]
        return list(dict.fromkeys(said))

    def setting_tags(self) -> list[str]:
        """Background, framing, place and style."""
        said = [f"{self.background} background"]
        said += ["gradient background"] if self.gradient_background else []
        said += [self.framing] if self.framing else []
        said += (
            [f"on the {self.position}" if self.position in ("left", "right") else f"at the {self.position}"]
            if self.position
            else []
        )
        return said + ([self.style] if self.style else [])

    def draw(self, width: int, height: int, rng: np.random.Generator) -> Pixels:
        """The picture, RGB uint8 (height, width, 3); `rng` moves what tags say nothing about."""
        manner = STYLES[self.style]
        ground = manner.adjust_color(PLAIN[self.background])
        canvas = Canvas(width, height, ground, manner, rng)
        if self.gradient_background:
            canvas.fill_gradient(ground, _fade(ground))
        count = len(self.subjects)
        for index, one in enumerate(self.subjects):
            if isinstance(one, Character):
                self._draw_character(canvas, one, index, count, rng)
            else:
                self._draw_shape(canvas, one, index, count, rng)
        pixels = canvas.to_pixels()
        if self.style == "monochrome":
            pixels = to_monochrome(pixels)
        return pixels if self.degradation is None else degrade(pixels, self.degradation, rng)

    def _draw_character(
        self, canvas: Canvas, one: Character, index: int, count: int, rng: np.random.Generator
    ) -> None:
        """Place a character: its head takes so much of the height, or of the width it may have."""
        width, height = canvas.size
        upper, share = self.framing == "upper body", width / count
        tall = 1.4 if self.framing == "full body" else 1.0
        whole = 2.2 + 4.3 * tall  # heads from top to toe, with some air
        head = min(height / (4.6 if upper else whole), share * (0.27 if upper else 0.24))
        head *= 1 + (rng.uniform() - 1) * JITTER
        middle = share * (index + 0.5 + rng.uniform(-1, 1) * JITTER / 2)
        if upper:
            face = max(height * (0.43 + rng.uniform(-1, 1) * JITTER / 2), head * 1.75)
        else:
            face = height / 2 - head * (whole / 2 - 1.9) + rng.uniform(-1, 1) * JITTER / 4 * height
        draw_character(Pen(canvas, (middle, face), head, bool(rng.integers(2))), one, not upper, tall)

    def _draw_shape(
        self, canvas: Canvas, one: Shape, index: int, count: int, rng: np.random.Generator
    ) -> None:
        width, height = canvas.size
        x, y = _cell_center(index, count, width, height)
        cell = min(width, height) if count == 1 else max(width, height) / count
        room = min(cell, width, height) * (0.5 if self.position else 1.0)
        unit = room * 0.34 * (1 + rng.uniform(-1, 1) * JITTER)
        aside = _position_offset(self.position)
        jitter = rng.uniform(-1, 1, 2) * JITTER / 2 * room
        place = (
            x + aside[0] * (width / 2 - 1.2 * unit) + jitter[0],
            y + aside[1] * (height / 2 - 1.2 * unit) + jitter[1],
        )
        draw_shape(Pen(canvas, place, unit), one)


def _fade(color: Color) -> Color:
    return darken(color, 0.55) if sum(to_gray(color)) > 600 else mix(color, (255, 255, 255), 0.6)


def _position_offset(place: str) -> Point:
    return {"left": (-1.0, 0.0), "right": (1.0, 0.0), "top": (0.0, -1.0), "bottom": (0.0, 1.0)}.get(
        place, (0.0, 0.0)
    )


def _cell_center(index: int, count: int, width: int, height: int) -> Point:
    """The middle of one of several cells along the longer side."""
    along = (index + 0.5) / count
    return (width * along, height / 2) if width >= height else (width / 2, height * along)


def make_grid(pictures: Sequence[Pixels], columns: int) -> Pixels:
    """Pictures of one size side by side; missing ones are white."""
    blank = np.full_like(pictures[0], 255)
    rows = [
        [*pictures[start : start + columns], *[blank] * (columns - len(pictures[start : start + columns]))]
        for start in range(0, len(pictures), columns)
    ]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])
