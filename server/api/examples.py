"""A body for each task, as a client sends it: examples of the OpenAPI document."""

from base64 import b64encode
from functools import cache
from io import BytesIO
from typing import Any, Literal

from PIL import Image, ImageDraw

Body = dict[str, Any]
SIDE = 64
"""Pixels of the images in the examples, the smallest that are allowed."""
PARAMETERS: Body = {
    "width": 832,
    "height": 1216,
    "steps": 28,
    "scale": 5,
    "sampler": "k_euler",
    "noise_schedule": "native",
    "seed": 1,
    "n_samples": 1,
    "negative_prompt": "lowres, bad anatomy",
    "qualityToggle": True,
    "ucPreset": 0,
}


@cache
def draw_example(kind: Literal["image", "mask"]) -> str:
    """Return a small PNG in Base64: a disk on a plain background, or the mask that covers it."""
    background, disk = ("skyblue", "gold") if kind == "image" else ("black", "white")
    image = Image.new("RGB", (SIDE, SIDE), background)
    ImageDraw.Draw(image).ellipse((16, 16, 48, 48), disk)
    file = BytesIO()
    image.save(file, "PNG")
    return b64encode(file.getvalue()).decode()


def build_generate_examples() -> dict[str, Body]:
    """Return bodies of `POST /ai/generate-image`, by what they ask for."""
    image, mask = draw_example("image"), draw_example("mask")
    small: Body = {"width": SIDE, "height": SIDE}
    caption = {
        "base_caption": "2girls, park",
        "char_captions": [_caption("girl, red hair"), _caption("girl, hat")],
    }
    v4_prompt = {"caption": caption, "use_coords": False, "use_order": True}
    init = {**small, "image": image, "strength": 0.7, "noise": 0, "extra_noise_seed": 1}
    infill = {**small, "image": image, "mask": mask, "add_original_image": True}
    return {
        "text to image": _generate("1girl, smile", {}),
        "several samples": _generate("1girl, smile", {"n_samples": 4, "seed": 0}),
        "image to image": _generate("yellow ball", init, action="img2img"),
        "inpainting": _generate("red apple", infill, "nai-diffusion-3-inpainting", "infill"),
        "enhance": _generate("1girl, smile", {"enhance": {"scale": 1.5, "magnitude": 3}}),
        "V4 form": _generate("", {"params_version": 3, "v4_prompt": v4_prompt}, "nai-diffusion-4-5-full"),
    }


def _caption(text: str) -> Body:
    return {"char_caption": text, "centers": [{"x": 0.5, "y": 0.5}]}


def _generate(text: str, changes: Body, model: str = "nai-diffusion-3", action: str = "generate") -> Body:
    return {"input": text, "model": model, "action": action, "parameters": PARAMETERS | changes}


def build_examples() -> dict[str, dict[str, Body]]:
    """Return the examples of each path that has a body, by name."""
    image, generate = draw_example("image"), build_generate_examples()
    source: Body = {"image": image, "width": SIDE, "height": SIDE}
    stream = {**PARAMETERS, "stream": "msgpack"}
    return {
        "/ai/generate-image": generate,
        "/ai/generate-image-stream": {
            "msgpack": {**generate["text to image"], "parameters": stream},
            "server-sent events": {**generate["text to image"], "parameters": stream | {"stream": "sse"}},
        },
        "/ai/generate-image/request-price": {
            "one prompt": {"tier": "opus", "request": generate["text to image"]}
        },
        "/ai/upscale": {"twice as large": {**source, "scale": 2}},
        "/ai/augment-image": {
            "line art": {"req_type": "lineart", **source},
            "another mood": {"req_type": "emotion", **source, "prompt": "happy;;", "defry": 0},
        },
        "/ai/annotate-image": {
            "edges": {
                "model": "canny",
                "parameters": {"image": image, "low_threshold": 100, "high_threshold": 200},
            },
            "soft edges": {"model": "hed", "parameters": {"image": image}},
        },
        "/ai/encode-vibe": {
            "reference image": {"image": image, "model": "nai-diffusion-3", "information_extracted": 1}
        },
        "/user/login": {"log in": {"key": "64 characters that the client derives from address and password"}},
        "/user/clientsettings": {"any": {}},
        "/v1/images/generations": {
            "two images": {
                "prompt": "1girl, smile",
                "size": "1024x1024",
                "n": 2,
                "response_format": "b64_json",
            },
            "extensions": {
                "prompt": "1girl",
                "size": "auto",
                "negative_prompt": "lowres",
                "seed": 1,
                "steps": 28,
            },
        },
    }
