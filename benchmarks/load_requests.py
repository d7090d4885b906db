"""Requests for `load`: a fixed set whose pixels are known, variations of it, and requests that are refused."""

import io
import json
import struct
import zipfile
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.sampling.samplers import SAMPLERS
from pipelines.types import Pixels

PICTURE, STREAM, UPSCALE = "/ai/generate-image", "/ai/generate-image-stream", "/ai/upscale"
HEADERS = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class PictureRequest:
    """A request that is answered with pictures."""

    name: str
    path: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BadRequest:
    """A request that is refused with `status`."""

    status: int
    path: str
    content: bytes
    headers: Mapping[str, str]
    method: str = "POST"


def build_fixed_requests() -> list[PictureRequest]:
    """Return requests of all sizes, actions and kinds of samplers, the longest some seconds of a CPU's time."""
    start, hole = _encode_png(_draw_source()), _encode_png(_draw_mask())
    infill = {"width": 192, "height": 256, "image": start, "mask": hole, "action": "infill"}
    parameters: dict[str, dict[str, Any]] = {
        "64x64": {"width": 64, "height": 64, "steps": 3},
        "256x256 ancestral": {"steps": 8, "sampler": "k_euler_ancestral", "noise_schedule": "karras"},
        "three of 128x192": {"width": 128, "height": 192, "n_samples": 3, "sampler": "k_dpmpp_2m_sde"},
        "four of 192x128": {"width": 192, "height": 128, "n_samples": 4, "sampler": "k_heun"},
        "512x768": {"width": 512, "height": 768, "steps": 4, "sampler": "ddim_v3"},
        "640x640": {"width": 640, "height": 640, "steps": 2, "sampler": "k_dpmpp_2m"},
        "SMEA": {"sm": True, "sm_dyn": True, "sampler": "k_dpmpp_2s_ancestral", "width": 320},
        "adaptive": {"width": 64, "height": 96, "sampler": "k_dpm_adaptive"},
        "without guidance": {"scale": 1, "steps": 12, "sampler": "k_lms"},
        "guidance in a window": {"steps": 12, "skip_cfg_above_sigma": 19, "cfg_rescale": 0.5},
        "img2img": {"image": start, "strength": 0.6, "noise": 0.1, "action": "img2img", "n_samples": 2},
        "infill": infill,
        "Enhance": {"width": 128, "height": 128, "enhance": {"scale": 1.5, "magnitude": 3, "seed": 5}},
        "WebP": {"image_format": "webp", "width": 128},
        "reference image": {"width": 128, "reference_image": start, "reference_strength": 0.6},
        "LoRA": {"width": 128, "height": 128, "loras": ["cyanotype"]},
    }
    upscale = PictureRequest("upscale", UPSCALE, {"image": start, "scale": 1.5})
    return [*(_build_request(name, fields) for name, fields in parameters.items()), upscale]


def _build_request(name: str, fields: Mapping[str, Any]) -> PictureRequest:
    defaults = {"width": 256, "height": 256, "steps": 6, "seed": 11, "negative_prompt": "lowres"}
    parameters = {**defaults, **fields}
    action = parameters.pop("action", "generate")
    body = {"input": "1girl, red hair, white background", "model": "nai-diffusion-3", "action": action}
    return PictureRequest(name, PICTURE, body | {"parameters": parameters})


def vary(request: PictureRequest, random: Random) -> PictureRequest:
    """Return a request with another prompt, seed, sampler and number of steps."""
    parameters = dict(request.body.get("parameters", {}))
    if not parameters:
        return request
    parameters |= {
        "seed": random.randrange(1, 2**32),
        "steps": random.randint(1, 12),
        "sampler": random.choice(list(SAMPLERS)),
        "scale": random.choice([1, 3.5, 7]),
    }
    tags = random.sample(["1girl", "{smile}", "blue hair", "[hat]", "red circle", "green background"], 3)
    body = {**request.body, "input": ", ".join(tags), "parameters": parameters}
    return PictureRequest(f"varied {request.name}", request.path, body)


def build_bad_request(random: Random) -> BadRequest:
    """Return a request of a kind chosen at random that cannot be answered with a picture."""

    def build(*, status: int = 400, path: str = PICTURE, **parameters: Any) -> BadRequest:
        body = {"input": "1girl", "parameters": {"width": 64, "height": 64, "steps": 1, **parameters}}
        return BadRequest(status, path, json.dumps(body).encode(), HEADERS)

    return random.choice(
        [
            build(steps=99),
            build(sampler="k_eular"),
            build(width=65, path=STREAM),
            build(image="bm90IGFuIGltYWdl"),
            build(loras=["missing"]),
            build(path="/ai/generate-video", status=404),
            BadRequest(400, PICTURE, b'{"input": "1girl", ', HEADERS),
            BadRequest(400, PICTURE, b'{"input": "a:0|b:0", "parameters": {"steps": 1}}', HEADERS),
            BadRequest(401, PICTURE, b"{}", {**HEADERS, "Authorization": "Bearer pst-unknown"}),
            BadRequest(403, PICTURE, b"{}", {**HEADERS, "Host": "example.org"}),
            BadRequest(405, PICTURE, b"", {}, "PUT"),
            BadRequest(415, PICTURE, b"a", {"Content-Type": "text/plain"}),
        ]
    )


def read_pictures(content: bytes) -> list[Pixels]:
    """Return the pixels of the images in a ZIP."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [_read_pixels(archive.read(name)) for name in archive.namelist()]


def read_stream(content: bytes) -> list[Pixels] | int:
    """Return the pixels of the final images of a MessagePack stream, or the status that it ended with."""
    finals: dict[int, Pixels] = {}
    while content:
        (length,) = struct.unpack(">I", content[:4])
        event, content = msgpack.unpackb(content[4 : 4 + length]), content[4 + length :]
        if event["event_type"] == "error":
            return int(event["code"])
        if event["event_type"] == "final":
            finals[event["samp_ix"]] = _read_pixels(event["image"])
    return [finals[index] for index in sorted(finals)]


def _read_pixels(file: bytes) -> Pixels:
    with Image.open(io.BytesIO(file)) as picture:
        return np.asarray(picture.convert("RGB"))


def _encode_png(pixels: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return b64encode(file.getvalue()).decode()


def _draw_source() -> NDArray[np.uint8]:
    """Return a blue disc on a ramp."""
    y, x = np.mgrid[:256, :256]
    ramp = np.stack([240 - y * 0.8, 220 - y * 0.2, 40 + x * 0.1], -1).astype(np.uint8)
    return np.where(
        ((x - 120) ** 2 + (y - 140) ** 2 < 3600)[..., None], np.array([40, 80, 220], np.uint8), ramp
    )


def _draw_mask() -> NDArray[np.uint8]:
    area = np.zeros((256, 256), np.uint8)
    area[64:-64, 64:-64] = 255
    return area
