"""Claim: characters by place have their own hair at their own place, where one text for both mixes them up.

40 requests of NAI V4 with two characters of different hair at .3 and .7 of the width, left one first, go through the
server's own reading into the demo model: with a region for each character, and flattened to one text. demo/evaluate.py
finds faces and hair in the pixels alone.
Run: python -m benchmarks.characters [--count 40] [--sheet FILE.png].
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from benchmarks.demo_semantics import draw_plain_people
from benchmarks.machine import machine
from demo import evaluate
from demo.captions import choose_word
from demo.checkpoint import DEMO
from demo.scenes import Scene, make_grid
from pipelines.pipeline import Pipeline
from pipelines.types import Pixels
from pipelines.weights.load import load_weights
from server.cli.bootstrap import build_request_policy
from server.config.catalog import single_model_catalog
from server.config.settings import Settings
from server.engine.model import detect_model
from server.request.resolve import RequestPolicy, resolve
from server.request.schema import read_request

RESULTS = Path(__file__).parent / "results" / "characters.json"
SIZE, PLACES = (384, 288), (0.3, 0.7)
BACKGROUNDS = ("white", "blue", "green", "purple", "black")
"""Those that the face detector does not take for skin."""
Reading = Literal["regional", "flatten"]


def sample_scenes(count: int) -> Iterator[Scene]:
    """Yield scenes of two plain characters of different hair, which differs from the background."""
    rng = np.random.default_rng(7)
    while count:
        people = draw_plain_people(rng, 2)
        hair = {character.hair for character in people}
        background = choose_word(rng, [word for word in BACKGROUNDS if word not in hair])
        if len(hair) == 2:
            yield Scene(people, background, "upper body")
            count -= 1


def build_request(scene: Scene, seed: int) -> dict[str, object]:
    """Return the body that NAI's page sends for a scene."""
    captions = [
        {"char_caption": ", ".join(character.tags()), "centers": [{"x": x, "y": 0.5}]}
        for character, x in zip(scene.characters, PLACES, strict=True)
    ]
    base = ", ".join([*scene.count_tags(), *scene.setting_tags()])
    prompt = {
        "caption": {"base_caption": base, "char_captions": captions},
        "use_coords": True,
        "use_order": True,
    }
    parameters = {"width": SIZE[0], "height": SIZE[1], "seed": seed, "qualityToggle": True, "ucPreset": 0}
    return {
        "input": base,
        "model": "nai-diffusion-4-5-full",
        "action": "generate",
        "parameters": {**parameters, "v4_prompt": prompt},
    }


def find_hair(pixels: Pixels) -> list[str | None]:
    """Return the hair of each face, from left to right."""
    lab = evaluate.to_lab(pixels)
    faces = sorted(evaluate.detect_faces(lab), key=lambda face: face.left)
    return [evaluate.detect_hair(lab, face) for face in faces]


def build_policy() -> RequestPolicy:
    """Return the policy of a server with the demo model and default settings."""
    return build_request_policy(detect_model(single_model_catalog(DEMO)), Settings())


def measure(
    pipeline: Pipeline, policy: RequestPolicy, reading: Reading, count: int
) -> tuple[dict[str, float], list[Pixels]]:
    """Return the shares of images with two faces, and with the right hair at the right place, and the images."""
    policy, pictures, faces, right = replace(policy, characters=reading), list[Pixels](), 0, 0
    for index, scene in enumerate(sample_scenes(count)):
        job = resolve(read_request(build_request(scene, 100 + index)), policy).job
        pictures.append(pipeline.run(job).images[0])
        hair = find_hair(pictures[-1])
        faces += len(hair) == 2
        right += hair == [character.hair for character in scene.characters]
    return {"two faces": round(faces / count, 3), "right": round(right / count, 3)}, pictures


def main() -> None:
    """Measure both readings, keep the figures and, if asked, draw a sheet: a row of regions above one of flat texts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40, help="number of requests (default: 40)")
    parser.add_argument("--sheet", type=Path, help="image file of the first ten of each")
    arguments = parser.parse_args()
    pipeline, policy = Pipeline(load_weights(DEMO)), build_policy()
    tables = {
        reading: measure(pipeline, policy, reading, arguments.count) for reading in ("regional", "flatten")
    }
    results = {reading: scores for reading, (scores, _) in tables.items()}
    print(results)
    RESULTS.write_text(
        json.dumps({"count": arguments.count, **results, "machine": machine()}, indent=2) + "\n"
    )
    if arguments.sheet is not None:
        tiles = [
            picture
            for start in (0, 5)
            for _, pictures in tables.values()
            for picture in pictures[start : start + 5]
        ]
        Image.fromarray(make_grid(tiles, 5)).save(arguments.sheet)


if __name__ == "__main__":
    main()
