"""ICC profiles for the colors that a PNG describes in other chunks: cICP, gAMA and cHRM, as browsers honor them.

Curves for HDR (PQ, HLG) are not among them: those need tone mapping, and such files carry an ICC profile as well.
"""

import struct
from collections.abc import Mapping, Sequence

import numpy as np

Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]
Curve = tuple[float, ...]
D50 = (0.9642, 1.0, 0.8249)
D65 = (0.3127, 0.3290)
SRGB_PRIMARIES = (*D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
"""x and y of white, red, green and blue, in the order of a cHRM chunk."""
PRIMARIES = {
    1: SRGB_PRIMARIES,
    5: (*D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    7: (*D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    9: (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
"""By code of ITU-T H.273: BT.709, BT.470 BG, SMPTE 170M and 240M, BT.2020, DCI P3, Display P3."""
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
BT709_CURVE = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
CURVES: dict[int, Curve] = {
    **dict.fromkeys((1, 6, 14, 15), BT709_CURVE),
    4: (2.2,),
    5: (2.8,),
    8: (1.0,),
    13: SRGB_CURVE,
}
"""By code of ITU-T H.273, as parameters of ICC's parametric curves: a power alone, or one above a straight line."""
SRGB_GAMMA = range(43_182, 47_728)
"""Values of gAMA that mean sRGB's curve: 1 / 2.2, give or take 5 % as in libpng."""
BRADFORD: Matrix = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def describe_coding(code: bytes, is_gray: bool) -> bytes:
    """Return a profile for the content of a cICP chunk; empty if it is none that is understood."""
    if len(code) != 4 or code[0] not in PRIMARIES or code[1] not in CURVES or code[2:] != b"\0\1":
        return b""
    return build_profile(PRIMARIES[code[0]], CURVES[code[1]], is_gray)


def describe_gamma(gamma: bytes, chromaticities: bytes, is_gray: bool) -> bytes:
    """Return a profile for the contents of gAMA and cHRM chunks; sRGB stands for the one that is empty or broken."""
    curve, primaries = SRGB_CURVE, SRGB_PRIMARIES
    if len(gamma) == 4 and (value := int.from_bytes(gamma)) and value not in SRGB_GAMMA:
        curve = (100_000 / value,)
    if len(chromaticities) == 32:
        primaries = tuple(value / 100_000 for value in struct.unpack(">8I", chromaticities))
    return build_profile(primaries, curve, is_gray)


def build_profile(primaries: Sequence[float], curve: Curve, is_gray: bool = False) -> bytes:
    """Return an ICC profile, version 4; empty if the primaries span no colors or the curve cannot be written."""
    if not 0.01 <= curve[0] <= 100:
        return b""
    tags = {b"wtpt": _encode_xyz(D50)}
    if is_gray:
        tags[b"kTRC"] = _encode_curve(curve)
    else:
        try:
            colorants = _compute_colorants(primaries)
        except (np.linalg.LinAlgError, ZeroDivisionError):
            return b""
        if not np.isfinite(colorants).all() or np.abs(colorants).max() > 10:
            return b""
        for index, letter in enumerate("rgb"):
            tags[f"{letter}XYZ".encode()] = _encode_xyz(colorants[:, index])
            tags[f"{letter}TRC".encode()] = _encode_curve(curve)
    return _assemble(tags, b"GRAY" if is_gray else b"RGB ")


def _compute_colorants(primaries: Sequence[float]) -> Matrix:
    """Return the XYZ of the primaries as columns, adapted from their white to D50."""
    white, *colors = (_to_xyz(x, y) for x, y in zip(primaries[::2], primaries[1::2], strict=True))
    columns = np.stack(colors, axis=1)
    columns = columns * np.linalg.solve(columns, white)
    scale = (BRADFORD @ np.array(D50)) / (BRADFORD @ white)
    return np.linalg.inv(BRADFORD) @ np.diag(scale) @ BRADFORD @ columns


def _to_xyz(x: float, y: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _encode_xyz(values: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]]) -> bytes:
    return b"XYZ \0\0\0\0" + _encode_fixed(values)


def _encode_curve(curve: Curve) -> bytes:
    return b"para\0\0\0\0" + struct.pack(">HH", 3 if len(curve) > 1 else 0, 0) + _encode_fixed(curve)


def _encode_fixed(values: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]]) -> bytes:
    return b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)


def _assemble(tags: Mapping[bytes, bytes], space: bytes) -> bytes:
    """Return the header, the table of tags, and the tags."""
    offset, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name, offset + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    size = offset + len(body)
    header = struct.pack(">I4xI4s4s4s12x4s", size, 0x04200000, b"mntr", space, b"XYZ ", b"acsp")
    illuminant = _encode_fixed(D50)
    return (header.ljust(68, b"\0") + illuminant).ljust(128, b"\0") + table + body
