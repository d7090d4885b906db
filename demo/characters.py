"""Flat-drawn characters and their tags. The unit is the radius of the head; (0, 0) is the middle of the face."""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, sin, tau
from typing import Literal

from demo.canvas import Pen, Point
from demo.palette import EYES, HAIR, INK, PLAIN, SKIN, Color, darken, mix

Haircut = Literal["long hair", "short hair", "twintails", "ponytail"]
Mouth = Literal["smile", "open mouth", "frown", "expressionless"]
LEGS: Color = (70, 75, 105)
HAT: Color = (205, 165, 95)
TONGUE: Color = (235, 110, 110)
FRAME: Color = (150, 40, 70)


@dataclass(frozen=True, slots=True)
class Character:
    """A girl or boy. `hair`, `eyes`, `shirt`, `skin` and `bow` are color words of the palette."""

    boy: bool
    hair: str
    haircut: Haircut
    eyes: str
    mouth: Mouth
    shirt: str
    skin: str = "light"
    closed_eyes: bool = False
    hat: bool = False
    glasses: bool = False
    blush: bool = False
    bow: str | None = None

    def tags(self) -> list[str]:
        """Return all tags of the character; counts such as `1girl` are the scene's."""
        tags = [f"{self.hair} hair", self.haircut, self.mouth, f"{self.shirt} shirt"]
        tags += ["closed eyes"] if self.closed_eyes else [f"{self.eyes} eyes"]
        tags += [name for name in ("hat", "glasses", "blush") if getattr(self, name)]
        tags += ["dark skin"] if self.skin == "dark" else []
        return tags + ([] if self.bow is None else [f"{self.bow} bow"])


def draw_character(pen: Pen, character: Character, with_legs: bool, body_scale: float = 1.0) -> None:
    """Draw a character.

    Args:
        with_legs: Draw the entire body. Otherwise the torso continues to the lower image border.
        body_scale: Size of the body relative to the head, 1 for chibi.
    """
    neck = pen.unit * 0.95 * (1 - body_scale)
    body = Pen(pen.canvas, (pen.origin[0], pen.origin[1] + neck), pen.unit * body_scale)
    _draw_back_hair(pen, character)
    _draw_body(body, character, with_legs)
    _draw_head(pen, character)
    _draw_face(pen, character)
    _draw_front_hair(pen, character)
    _draw_brows(pen, character)
    _draw_accessories(pen, character)


def mirror(points: list[Point]) -> list[Point]:
    """Return a symmetric outline: its right half, given from top to bottom, and the mirror image back to the top."""
    return [*points, *((-x, y) for x, y in reversed(points) if x)]


def draw_both_sides(draw: Callable[[float], None]) -> None:
    """Call `draw` with the sign of x of either side, -1 first."""
    draw(-1.0)
    draw(1.0)


def _draw_back_hair(pen: Pen, character: Character) -> None:
    color = darken(HAIR[character.hair], 0.86)
    if character.haircut == "long hair":
        pen.blob(
            mirror([(0, -1.1), (0.85, -0.85), (1.2, 0.0), (1.25, 1.2), (1.35, 2.3), (0.8, 2.55), (0.3, 2.2)]),
            color,
        )
    elif character.haircut == "twintails":
        draw_both_sides(
            lambda s: pen.blob(
                [
                    (s * 0.8, -0.6),
                    (s * 1.45, -0.75),
                    (s * 1.95, 0.1),
                    (s * 1.95, 1.3),
                    (s * 1.55, 2.1),
                    (s * 1.3, 1.2),
                    (s * 1.15, 0.2),
                ],
                color,
            )
        )
    elif character.haircut == "ponytail":
        pen.blob(
            [(0.3, -1.0), (1.2, -1.35), (1.85, -0.6), (1.9, 0.6), (1.55, 1.7), (1.25, 0.9), (1.1, -0.2)],
            color,
        )
    if character.haircut != "long hair":
        pen.blob(mirror([(0, -1.12), (0.85, -0.85), (1.13, 0.0), (1.0, 0.75), (0.5, 0.8)]), color)


def _draw_body(pen: Pen, character: Character, with_legs: bool) -> None:
    skin, shirt = SKIN[character.skin], PLAIN[character.shirt]
    bottom = 2.75 if with_legs else 9.0
    if with_legs:
        _draw_legs(pen, character)
    arm = [(0.62, 1.32), (0.98, 1.5), (1.12, 2.1), (1.1, 2.55), (0.84, 2.55), (0.72, 2.0)]
    if not with_legs:
        arm = [
            (0.6, 1.34),
            (1.05, 1.52),
            (1.28, 2.2),
            (1.38, 3.2),
            (1.4, 5.0),
            (1.4, 9.0),
            (1.0, 9.0),
            (0.98, 5.0),
            (0.9, 3.0),
            (0.8, 2.2),
        ]
    else:
        draw_both_sides(lambda s: pen.ellipse((s * 0.97, 2.62), 0.17, 0.17, skin))
    draw_both_sides(lambda s: pen.blob([(s * x, y) for x, y in arm], darken(shirt, 0.9)))
    waist = 0.66 if with_legs else 0.85
    lower = [] if with_legs else [(waist + 0.04, 3.2), (waist + 0.04, 5.0)]
    pen.blob(
        mirror([(0, 1.2), (0.45, 1.22), (0.72, 1.42), (waist, 2.1), *lower, (waist + 0.04, bottom)]), shirt
    )
    pen.blob(mirror([(0, 0.8), (0.24, 0.85), (0.26, 1.2), (0.0, 1.42)]), darken(skin, 0.92))


def _draw_legs(pen: Pen, character: Character) -> None:
    skin = SKIN[character.skin]
    draw_both_sides(
        lambda s: pen.blob(
            [(s * 0.1, 2.6), (s * 0.5, 2.6), (s * 0.46, 3.7), (s * 0.14, 3.7)],
            LEGS if character.boy else skin,
        )
    )
    draw_both_sides(
        lambda s: pen.blob(
            [(s * 0.08, 3.62), (s * 0.48, 3.6), (s * 0.6, 3.85), (s * 0.08, 3.88)], darken(LEGS, 0.6)
        )
    )
    if not character.boy:
        pen.blob(mirror([(0, 2.5), (0.62, 2.5), (0.98, 3.15), (0.4, 3.25)]), LEGS)


def _draw_head(pen: Pen, character: Character) -> None:
    skin = SKIN[character.skin]
    draw_both_sides(lambda s: pen.ellipse((s * 0.97, 0.12), 0.14, 0.2, skin))
    jaw = 0.72 if character.boy else 0.66
    pen.blob(mirror([(0, -1.0), (0.7, -0.75), (0.98, -0.1), (jaw + 0.2, 0.5), (0.42, 0.9), (0, 1.02)]), skin)


def _draw_face(pen: Pen, character: Character) -> None:
    skin = SKIN[character.skin]
    if character.blush:
        draw_both_sides(
            lambda s: pen.ellipse((s * 0.62, 0.5), 0.18, 0.1, mix(skin, (245, 110, 120), 0.55), width=0)
        )
    draw_both_sides(lambda s: _draw_eye(pen, character, s))
    _draw_mouth(pen, character.mouth)


def _draw_brows(pen: Pen, character: Character) -> None:
    """Draw the brows of boys and of frowning characters; all others are hidden behind the hair."""
    slope = 0.12 if character.mouth == "frown" else 0.0
    if character.boy or slope:
        color = darken(HAIR[character.hair], 0.55)
        draw_both_sides(
            lambda s: pen.line(
                [(s * 0.2, -0.2 + slope), (s * 0.42, -0.27), (s * 0.66, -0.2 - slope)], color, 1.6
            )
        )


def _draw_eye(pen: Pen, character: Character, s: float) -> None:
    x, y = s * 0.43, 0.16
    if character.closed_eyes:
        pen.line([(x - 0.2, y + 0.02), (x, y + 0.16), (x + 0.2, y + 0.02)], INK, 1.6)
        return
    height = 0.25 if character.boy else 0.32
    iris = EYES[character.eyes]
    pen.ellipse((x, y), 0.25, height, (255, 255, 255), width=0)
    pen.ellipse((x, y), 0.21, height, iris, width=0)
    pen.ellipse((x, y + 0.02), 0.085, height * 0.45, darken(iris, 0.25), width=0)
    pen.ellipse((x - 0.07, y - height * 0.42), 0.07, 0.08, (255, 255, 255), width=0)
    pen.line([(x - 0.26, y - height * 0.62), (x, y - height * 1.05), (x + 0.26, y - height * 0.62)], INK, 2.0)
    if not character.boy:
        pen.line([(x + s * 0.22, y - height * 0.62), (x + s * 0.34, y - height * 0.66)], INK, 1.6)


def _draw_mouth(pen: Pen, mouth: Mouth) -> None:
    if mouth == "smile":
        pen.line([(-0.26, 0.6), (0, 0.8), (0.26, 0.6)], INK, 1.9)
    elif mouth == "open mouth":
        pen.blob([(-0.24, 0.54), (0, 0.52), (0.24, 0.54), (0.13, 0.83), (-0.13, 0.83)], (150, 40, 50), 0.8)
        pen.ellipse((0, 0.74), 0.09, 0.06, TONGUE, width=0)
    elif mouth == "frown":
        pen.line([(-0.26, 0.76), (0, 0.57), (0.26, 0.76)], INK, 1.9)
    else:
        pen.line([(-0.16, 0.66), (0.0, 0.66), (0.16, 0.66)], INK, 1.9)


def _draw_front_hair(pen: Pen, character: Character) -> None:
    color = HAIR[character.hair]
    if character.boy:
        spikes = [
            (0, -1.38),
            (0.3, -1.18),
            (0.62, -1.28),
            (0.82, -0.92),
            (1.16, -0.75),
            (1.08, -0.3),
            (1.1, 0.1),
            (0.9, -0.15),
        ]
        pen.polygon(
            [
                *spikes,
                (0.75, -0.5),
                (0.5, -0.38),
                (0.32, -0.62),
                (0.05, -0.34),
                (-0.2, -0.62),
                (-0.45, -0.4),
                (-0.75, -0.5),
                *[(-x, y) for x, y in reversed(spikes) if x],
            ],
            color,
        )
    else:
        sides = [
            (0, -1.22),
            (0.6, -1.12),
            (1.02, -0.65),
            (1.14, 0.0),
            (1.02, 0.55),
            (0.88, 0.1),
            (0.8, -0.35),
        ]
        pen.blob(
            [
                *sides,
                (0.56, -0.34),
                (0.3, -0.58),
                (0.05, -0.3),
                (-0.25, -0.58),
                (-0.56, -0.34),
                *[(-x, y) for x, y in reversed(sides) if x],
            ],
            color,
        )
    shine = mix(color, (255, 255, 255), 0.45)
    pen.line([(-0.62, -0.78), (-0.3, -0.92), (0.05, -0.95)], shine, 2.4)


def _draw_accessories(pen: Pen, character: Character) -> None:
    if character.glasses:
        draw_both_sides(lambda s: _draw_lens(pen, s))
        pen.line([(-0.09, 0.12), (0, 0.08), (0.09, 0.12)], FRAME, 1.8)
    if character.bow is not None:
        bow = PLAIN[character.bow]
        draw_both_sides(lambda s: pen.blob([(0, 1.42), (s * 0.34, 1.24), (s * 0.38, 1.6)], bow))
        pen.ellipse((0, 1.42), 0.1, 0.1, darken(bow, 0.85))
    if character.hat:
        pen.blob(mirror([(0, -1.75), (0.6, -1.68), (0.86, -1.1), (0.5, -0.85)]), HAT)
        pen.blob(mirror([(0, -1.12), (0.8, -1.05), (1.5, -0.72), (0.7, -0.72)]), HAT)
        pen.line([(-0.84, -1.06), (0, -1.18), (0.84, -1.06)], (150, 60, 60), 3.0)


def _draw_lens(pen: Pen, s: float) -> None:
    """Draw a round lens in its own color: dark rims with corners were learned as a tangle with the lashes."""
    angles = [k * tau / 24 for k in range(25)]
    pen.line([(s * 0.43 + 0.35 * cos(angle), 0.16 + 0.37 * sin(angle)) for angle in angles], FRAME, 1.8)
