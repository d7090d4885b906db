"""The colors of the demo's world, by the words that tags have for them."""

from colorsys import hls_to_rgb, rgb_to_hls

Color = tuple[int, int, int]

PLAIN: dict[str, Color] = {
    "red": (220, 40, 45),
    "orange": (245, 140, 30),
    "yellow": (250, 215, 50),
    "green": (50, 165, 75),
    "blue": (45, 95, 215),
    "purple": (135, 60, 185),
    "pink": (250, 140, 185),
    "brown": (130, 80, 45),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (135, 135, 140),
}
"""Backgrounds, shapes and shirts. Black and white are exactly that: zero terminal SNR is what can draw them."""

HAIR: dict[str, Color] = {
    "red": (200, 45, 50),
    "orange": (235, 130, 45),
    "blonde": (245, 210, 105),
    "green": (75, 170, 100),
    "blue": (65, 105, 210),
    "purple": (140, 85, 190),
    "pink": (245, 150, 190),
    "brown": (120, 75, 50),
    "black": (45, 42, 52),
    "white": (238, 238, 244),
}
EYES: dict[str, Color] = {
    "red": (205, 40, 50),
    "yellow": (235, 180, 30),
    "green": (45, 160, 80),
    "blue": (45, 105, 220),
    "purple": (140, 60, 190),
    "brown": (115, 65, 35),
}
SKIN: dict[str, Color] = {"light": (252, 212, 182), "dark": (165, 105, 75)}
INK: Color = (48, 38, 48)
PAPER: Color = (255, 255, 255)


def darken(color: Color, share: float) -> Color:
    """A color with this share of its light."""
    return mix(color, (0, 0, 0), 1 - share)


def mix(color: Color, other: Color, share: float) -> Color:
    """A color on its way to another: 0 is the one, 1 the other."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(color, other, strict=True))
    return red, green, blue


def to_gray(color: Color) -> Color:
    """The grey that is as light as a color (Rec. 601)."""
    level = round(0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2])
    return level, level, level


def adjust_tone(color: Color, lightness: float, saturation: float) -> Color:
    """A color brought towards a lightness of its own hue, its saturation multiplied; black and white stay."""
    if color in (PLAIN["black"], PLAIN["white"]):
        return color
    hue, light, strength = rgb_to_hls(*(part / 255 for part in color))
    red, green, blue = hls_to_rgb(hue, (light + lightness) / 2, min(1.0, strength * saturation))
    return round(red * 255), round(green * 255), round(blue * 255)
