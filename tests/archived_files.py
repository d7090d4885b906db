"""Small pictures with metadata, and their names in an archive."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np

from server.archive.names import PictureName, to_local_time
from server.picture.png import encode_png
from server.picture.webp import encode_webp

PIXELS = np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)
ENCODERS = {"png": encode_png, "webp": encode_webp}
START = datetime(2026, 11, 1, 12, tzinfo=UTC)


def write_picture(suffix="png", fields=None):
    """The file of a small picture with these text fields."""
    return ENCODERS[suffix](PIXELS, fields or {})


def write_comment(prompt, suffix="png", model="nai-diffusion-3", **settings):
    """The file of a small picture with a Comment like that of a generated one."""
    comment = {"prompt": prompt, "steps": 28, "sampler": "k_euler", "uc": "lowres"} | settings
    comment["naiad"] = {"job": {"model": model}}
    return write_picture(suffix, {"Source": "Stable Diffusion XL 94712E0C", "Comment": json.dumps(comment)})


def build_name(number=0, owner="", suffix="png", days=0, index=0):
    """The name of the picture with this number; later numbers are a second later each."""
    created = to_local_time(START + timedelta(seconds=number, days=days))
    return PictureName(created, f"{number:016x}", index, 7, owner, suffix)


def put_file(folder, name, data):
    """Put a file into an archive's folder as if it had been written by an archive; returns its path there."""
    path = folder / name.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return name.path
