"""The colours of the demo's world, by the words that tags have for them."""

from colorsys import hls_to_rgb, rgb_to_hls

Colour = tuple[int, int, int]

PLAIN: dict[str, Colour] = {
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

HAIR: dict[str, Colour] = {
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
EYES: dict[str, Colour] = {
    "red": (205, 40, 50),
    "yellow": (235, 180, 30),
    "green": (45, 160, 80),
    "blue": (45, 105, 220),
    "purple": (140, 60, 190),
    "brown": (115, 65, 35),
}
SKIN: dict[str, Colour] = {"light": (252, 212, 182), "dark": (165, 105, 75)}
INK: Colour = (48, 38, 48)
PAPER: Colour = (255, 255, 255)


def darker(colour: Colour, share: float) -> Colour:
    """A colour with this share of its light."""
    return mixed(colour, (0, 0, 0), 1 - share)


def mixed(colour: Colour, other: Colour, share: float) -> Colour:
    """A colour on its way to another: 0 is the one, 1 the other."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def grey(colour: Colour) -> Colour:
    """The grey that is as light as a colour (Rec. 601)."""
    level = round(0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2])
    return level, level, level


def retoned(colour: Colour, lightness: float, saturation: float) -> Colour:
    """A colour brought towards a lightness of its own hue, its saturation multiplied; black and white stay."""
    if colour in (PLAIN["black"], PLAIN["white"]):
        return colour
    hue, light, strength = rgb_to_hls(*(part / 255 for part in colour))
    red, green, blue = hls_to_rgb(hue, (light + lightness) / 2, min(1.0, strength * saturation))
    return round(red * 255), round(green * 255), round(blue * 255)
