"""Run by novelai-sdk's own Python: asks a server for pictures and saves what the client made of the answer."""

import json
import sys
from pathlib import Path

from novelai import NovelAI
from novelai.exceptions import NovelAIError
from novelai.types import GenerateImageParams

COMMON = {
    "prompt": "1girl, smile",
    "model": "nai-diffusion-3",
    "size": (512, 768),
    "steps": 6,
    "seed": 42,
    "sampler": "k_euler",
    "noise_schedule": "karras",
}
ASKED = {"picture": {}, "two": {"n_samples": 2}, "wrong": {"prompt": "a:0|b:0", "quality": False}}


def main(address: str, folder: str, what: str) -> None:
    """Ask once; an answer the client takes for a refusal is printed by its kind."""
    with NovelAI(api_key="pst-" + "a" * 64, image_base=address) as client:
        try:
            images = client.image.generate(GenerateImageParams(**COMMON | ASKED[what]))
        except NovelAIError as error:
            print(type(error).__name__, error)
            return
    for number, image in enumerate(images):
        image.save(Path(folder) / f"{number}.png")
        (Path(folder) / f"{number}.json").write_text(json.dumps(image.info))


main(*sys.argv[1:])
