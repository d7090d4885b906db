"""Sends one request with novelai-sdk."""

import io
from base64 import b64decode

from driver import Call, main
from novelai import NovelAI
from novelai.exceptions import NovelAIError
from novelai.types import GenerateImageParams, GenerateImageStreamParams, SuggestTagsParams
from novelai.types.user.image import I2iParams, InpaintParams
from novelai.types.user.tools import UpscaleParams
from PIL.PngImagePlugin import PngInfo

MODEL = "nai-diffusion-3"


def encode(image) -> bytes:
    """Return a PNG with its text chunks, which Pillow drops by default."""
    texts, file = PngInfo(), io.BytesIO()
    for name, text in image.info.items():
        texts.add_text(name, str(text))
    image.save(file, "PNG", pnginfo=texts)
    return file.getvalue()


def save(call: Call, images: list) -> dict:
    """Save the Pillow images that the client returns."""
    return call.save([encode(image) for image in images])


def connect(call: Call) -> NovelAI:
    """Return a client for the server."""
    return NovelAI(api_key=call.token, image_base=call.address)


def build_request(call: Call, **fields: object) -> dict:
    """Return the client's own names and values for the request."""
    request = call.pick("prompt", "quality", "steps", "seed", "sampler", "n_samples")
    return request | {"model": MODEL, "size": (call.request["width"], call.request["height"])} | fields


def generate(call: Call, **fields: object) -> dict:
    """Generate images, in one response."""
    with connect(call) as client:
        return save(call, client.image.generate(GenerateImageParams(**build_request(call, **fields))))


def img2img(call: Call) -> dict:
    """Generate from an init image."""
    return generate(call, i2i=I2iParams(**call.pick("image", "strength", "noise")))


def infill(call: Call) -> dict:
    """Repaint the masked area of an image; the client sends a strength of its own."""
    return generate(call, inpaint=InpaintParams(**call.pick("image", "mask")))


def stream(call: Call) -> dict:
    """Generate images as server-sent events."""
    with connect(call) as client:
        chunks = list(client.image.generate_stream(GenerateImageStreamParams(**build_request(call))))
    finals = [b64decode(chunk.image) for chunk in chunks if chunk.event_type == "final"]
    return call.save(finals, previews=len(chunks) - len(finals))


def suggest_tags(call: Call) -> dict:
    """Complete a tag."""
    with connect(call) as client:
        tags = client.image.suggest_tags(SuggestTagsParams(model=MODEL, prompt=call.request["prompt"]))
    return {"tags": [tag.tag for tag in tags]}


def subscription(call: Call) -> dict:
    """Read the subscription."""
    with connect(call) as client:
        return client.user.get_subscription().model_dump()


def upscale(call: Call) -> dict:
    """Upscale an image."""
    with connect(call) as client:
        return save(call, client.tools.upscale(UpscaleParams(image=call.request["image"])))


def director(call: Call) -> dict:
    """Draw an image as line art."""
    with connect(call) as client:
        return save(call, client.tools.line_art(call.request["image"]))


main(
    {
        "generate": generate,
        "img2img": img2img,
        "infill": infill,
        "stream": stream,
        "tags": suggest_tags,
        "subscription": subscription,
        "upscale": upscale,
        "director": director,
    },
    (NovelAIError,),
)
