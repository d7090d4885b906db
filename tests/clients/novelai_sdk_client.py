"""Run by novelai-sdk's own Python: asks a server for one thing and prints what the client made of the answer."""

import json
import sys
from pathlib import Path

from novelai import NovelAI
from novelai.exceptions import NovelAIError
from novelai.types import GenerateImageParams
from novelai.types.user.image import I2iParams, InpaintParams
from PIL.PngImagePlugin import PngInfo


def draw(client: NovelAI, folder: Path, request: dict) -> dict:
    """Pictures, saved as the client opened them: Pillow leaves the texts out unless told."""
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
    return {"pictures": len(images)}


def main(address: str, token: str, task: str, folder: str, request: str) -> None:
    """Ask once; a refusal is told by the client's own kind of error."""
    with NovelAI(api_key=token, image_base=address) as client:
        try:
            if task == "subscription":
                said = client.user.get_subscription().model_dump()
            else:
                said = draw(client, Path(folder), json.loads(request))
        except NovelAIError as error:
            said = {"error": type(error).__name__, "says": str(error)}
    print(json.dumps(said))


main(*sys.argv[1:])
