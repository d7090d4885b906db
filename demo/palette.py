"""The colors the demo draws with, by the words its tags use, and arithmetic on them. Colors are sRGB bytes."""

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
"""Backgrounds, shapes and shirts. Black and white are exact, because only zero terminal SNR can generate them."""

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

CYANOTYPE: tuple[Color, Color] = ((8, 40, 95), (222, 240, 246))
"""The darkest and the lightest tone of a cyanotype, the palette of the demo's LoRA."""


def darken(color: Color, share: float) -> Color:
    """Return the color with `share` of its brightness."""
    return mix(color, (0, 0, 0), 1 - share)


def mix(color: Color, other: Color, share: float) -> Color:
    """Interpolate linearly: share 0 gives `color`, share 1 gives `other`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(color, other, strict=True))
    return red, green, blue


def to_gray(color: Color) -> Color:
    """Return the gray of the same luma (Rec. 601)."""
    level = round(0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2])
    return level, level, level


def adjust_tone(color: Color, lightness: float, saturation: float) -> Color:
    """Move a color halfway to a lightness and multiply its saturation; black and white stay as they are."""
    if color in (PLAIN["black"], PLAIN["white"]):
        return color
    hue, light, strength = rgb_to_hls(*(part / 255 for part in color))
    red, green, blue = hls_to_rgb(hue, (light + lightness) / 2, min(1.0, strength * saturation))
    return round(red * 255), round(green * 255), round(blue * 255)
