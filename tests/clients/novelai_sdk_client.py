"""Sends one request to a server with novelai-sdk and prints the result. Run by a Python that has novelai-sdk."""

import json
import sys
from pathlib import Path

from novelai import NovelAI
from novelai.exceptions import NovelAIError
from novelai.types import GenerateImageParams
from novelai.types.user.image import I2iParams, InpaintParams
from PIL.PngImagePlugin import PngInfo


def generate(client: NovelAI, folder: Path, request: dict) -> dict:
    """Generate images and save them with their text chunks, which Pillow drops by default."""
    size = (request.pop("width"), request.pop("height"))
    if start := request.pop("start", None):
        kind = {"img2img": "i2i", "infill": "inpaint"}[start.pop("kind")]
        request[kind] = {"i2i": I2iParams, "inpaint": InpaintParams}[kind](**start)
    images = client.image.generate(GenerateImageParams(model="nai-diffusion-3", size=size, **request))
    for number, image in enumerate(images):
        texts = PngInfo()
        for name, text in image.info.items():
            texts.add_text(name, text)
        image.save(folder / f"{number}.png", pnginfo=texts)
    return {"images": len(images)}


def main(address: str, token: str, operation: str, folder: str, request: str) -> None:
    """Send one request and print its result, or the name and message of the client's own exception."""
    with NovelAI(api_key=token, image_base=address) as client:
        try:
            if operation == "subscription":
                result = client.user.get_subscription().model_dump()
            else:
                result = generate(client, Path(folder), json.loads(request))
        except NovelAIError as error:
            result = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(result))


main(*sys.argv[1:])
