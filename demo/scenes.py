"""Scenes: what a training image shows, its tags, and how it is drawn at any size."""

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
"""Relative variation of sizes and positions that no tag describes. It is small because such variation is only noise
to a network that is trained on the tags."""
FRAMINGS = ("upper body", "full body", "chibi")
DIRECTIONS: dict[str, Point] = {
    "": (0.0, 0.0),
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "top": (0.0, -1.0),
    "bottom": (0.0, 1.0),
}
"""Directions from the middle by the words for `Scene.position`."""


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of an image.

    Attributes:
        subjects: One or two characters or one to three shapes, from left to right.
        background: A word of PLAIN.
        framing: For characters, one of FRAMINGS.
        style: A key of STYLES.
        gradient_background: Whether the background fades downwards: light colors to darker, all others to lighter.
        position: Where a single shape is: "" (the middle), "left", "right", "top" or "bottom".
        degradation: None for a good image, otherwise the severity, 0 to 1.
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
        return tuple(subject for subject in self.subjects if isinstance(subject, Character))

    def tags(self) -> list[str]:
        """Return all tags of the content, the counts first. Quality tags are not among them."""
        return [*self.count_tags(), *self.subject_tags(), *self.setting_tags()]

    def count_tags(self) -> list[str]:
        """Return the tags of how many characters or equal shapes there are."""
        if not self.characters:
            first = self.subjects[0]
            assert isinstance(first, Shape)
            is_repeated = len(self.subjects) > 1 and all(subject == first for subject in self.subjects)
            return ["no humans", *([f"{len(self.subjects)} {first.kind}s"] if is_repeated else [])]
        boys = sum(character.boy for character in self.characters)
        girls = len(self.characters) - boys
        tags = [
            f"{count}{name}{'s' * (count > 1)}" for count, name in ((girls, "girl"), (boys, "boy")) if count
        ]
        return [*tags, *(["solo"] if len(self.characters) == 1 else [])]

    def subject_tags(self) -> list[str]:
        """Return the tags of all subjects without duplicates."""
        return list(dict.fromkeys(tag for subject in self.subjects for tag in subject.tags()))

    def setting_tags(self) -> list[str]:
        """Return the tags of background, framing, position and style."""
        tags = [f"{self.background} background"]
        tags += ["gradient background"] if self.gradient_background else []
        tags += [self.framing] if self.framing else []
        if self.position:
            tags.append(f"{'on' if self.position in ('left', 'right') else 'at'} the {self.position}")
        return tags + ([self.style] if self.style else [])

    def draw(self, width: int, height: int, rng: np.random.Generator) -> Pixels:
        """Return the image, RGB uint8 (height, width, 3).

        Args:
            rng: Decides what no tag describes: small shifts, mirroring, wobble and noise.
        """
        style = STYLES[self.style]
        background = style.adjust_color(PLAIN[self.background])
        canvas = Canvas(width, height, background, style, rng)
        if self.gradient_background:
            canvas.fill_gradient(background, _fade(background))
        for index, subject in enumerate(self.subjects):
            if isinstance(subject, Character):
                self._draw_character(canvas, subject, index, rng)
            else:
                self._draw_shape(canvas, subject, index, rng)
        pixels = canvas.to_pixels()
        if self.style == "monochrome":
            pixels = to_monochrome(pixels)
        return pixels if self.degradation is None else degrade(pixels, self.degradation, rng)

    def _draw_character(
        self, canvas: Canvas, character: Character, index: int, rng: np.random.Generator
    ) -> None:
        """Place a character in its column. The height, or the column's width, limits the size of its head."""
        width, height = canvas.size
        is_upper_body, column = self.framing == "upper body", width / len(self.subjects)
        body_scale = 1.4 if self.framing == "full body" else 1.0
        heads = 2.2 + 4.3 * body_scale  # from head to toe in head radii, with a margin
        head = min(height / (4.6 if is_upper_body else heads), column * (0.27 if is_upper_body else 0.24))
        head *= 1 + (rng.uniform() - 1) * JITTER
        x = column * (index + 0.5 + rng.uniform(-1, 1) * JITTER / 2)
        if is_upper_body:
            y = max(height * (0.43 + rng.uniform(-1, 1) * JITTER / 2), head * 1.75)
        else:
            y = height / 2 - head * (heads / 2 - 1.9) + rng.uniform(-1, 1) * JITTER / 4 * height
        pen = Pen(canvas, (x, y), head, bool(rng.integers(2)))
        draw_character(pen, character, not is_upper_body, body_scale)

    def _draw_shape(self, canvas: Canvas, shape: Shape, index: int, rng: np.random.Generator) -> None:
        (width, height), count = canvas.size, len(self.subjects)
        x, y = _cell_center(index, count, width, height)
        cell = min(width, height) if count == 1 else max(width, height) / count
        room = min(cell, width, height) * (0.5 if self.position else 1.0)
        unit = room * 0.34 * (1 + rng.uniform(-1, 1) * JITTER)
        direction = DIRECTIONS[self.position]
        jitter = rng.uniform(-1, 1, 2) * JITTER / 2 * room
        center = (
            x + direction[0] * (width / 2 - 1.2 * unit) + jitter[0],
            y + direction[1] * (height / 2 - 1.2 * unit) + jitter[1],
        )
        draw_shape(Pen(canvas, center, unit), shape)


def _fade(color: Color) -> Color:
    return darken(color, 0.55) if sum(to_gray(color)) > 600 else mix(color, (255, 255, 255), 0.6)


def _cell_center(index: int, count: int, width: int, height: int) -> Point:
    """Return the middle of one of `count` cells along the longer side."""
    share = (index + 0.5) / count
    return (width * share, height / 2) if width >= height else (width / 2, height * share)


def make_grid(images: Sequence[Pixels], columns: int) -> Pixels:
    """Return images of one size as one, row by row; empty cells are white."""
    blanks = [np.full_like(images[0], 255)] * (-len(images) % columns)
    cells = [*images, *blanks]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])
