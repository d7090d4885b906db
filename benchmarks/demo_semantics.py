"""Claim: the demo model draws what its tags say. Prompts are drawn at random from its world, with fixed seeds.

k_euler, 28 steps, scale 5, NAI's quality tags and first UC preset, judged from pixels alone by demo/evaluate.py. What
is told: shares of pictures that show background, hair or shape, shirt, eyes and count as asked; black and white
backgrounds with and without the step from infinite noise; what guidance, weights, UC and quality tags do.
Run: python -m benchmarks.demo_semantics [PARTS] [--model FILE] [--prompts 110].
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from benchmarks import demo_inputs
from benchmarks.machine import machine
from demo import evaluate
from demo.captions import choose_word, random_character
from demo.checkpoint import DEMO
from demo.model import as_served
from demo.palette import PLAIN
from demo.scenes import Scene
from demo.shapes import KINDS, Shape
from pipelines.job import Guidance, Job, Prompts
from pipelines.pipeline import Pipeline
from pipelines.types import Pixels, Size
from pipelines.weights.load import load_weights
from server.config.resources import configs
from server.request.presets import PromptTexts, apply_presets, load_presets

RESULTS = Path(__file__).parent / "results"
Accuracies = dict[str, float]


@dataclass(frozen=True, slots=True)
class DemoGenerator:
    """A model and how it is asked."""

    pipeline: Pipeline

    def generate(
        self,
        prompt: str,
        seed: int,
        size: Size = (512, 512),
        scale: float = 5.0,
        rescale: float = 0.0,
        negative: str | None = None,
        quality: bool = True,
    ) -> Pixels:
        """A picture; without a negative prompt the first UC preset is added."""
        presets = load_presets(configs() / "presets.toml")
        texts = PromptTexts(prompt, negative or "", quality, 0 if negative is None else None)
        texts = apply_presets(texts, presets, "nai-diffusion-3", "auto")
        prompts = Prompts(texts.positive, texts.negative)
        guidance = Guidance(scale, rescale=rescale)
        job = Job("demo", prompts, *size, 28, "k_euler", "native", guidance, (seed,))
        return self.pipeline.run(as_served(job))[0]


def random_scenes(count: int) -> list[Scene]:
    """Scenes whose every color the judge can see: single characters, pairs, and shapes."""
    rng = np.random.default_rng(2026)
    return [_character(rng, 1 + (k % 10 in (6,))) if k % 10 < 7 else _shape(rng) for k in range(count)]


def _character(rng: np.random.Generator, count: int) -> Scene:
    bare = {
        "skin": "light",
        "hat": False,
        "glasses": False,
        "closed_eyes": False,
        "bow": None,
        "blush": False,
    }
    people = tuple(replace(random_character(rng), **bare) for _ in range(count))
    taken = {word for one in people for word in (one.hair, one.shirt)} | {"yellow", "pink"}
    ground = choose_word(rng, [word for word in PLAIN if word not in taken])
    return Scene(people, ground, choose_word(rng, ("upper body", "full body", "chibi")))


def _shape(rng: np.random.Generator) -> Scene:
    ground = choose_word(rng, PLAIN)
    one = Shape(choose_word(rng, KINDS), choose_word(rng, [word for word in PLAIN if word != ground]))
    return Scene((one,) * int(rng.integers(1, 3)), ground)


def evaluate_image(scene: Scene, pixels: Pixels) -> dict[str, bool]:
    """What of a scene a picture shows."""
    said = {"background": evaluate.detect_background(pixels) == scene.background}
    if not scene.characters:
        (shape,) = {one for one in scene.subjects if isinstance(one, Shape)}
        found = len(evaluate.find_components(evaluate.segment_subject(pixels)))
        color = evaluate.detect_color(pixels) == shape.color
        kind = evaluate.detect_shape(pixels) == shape.kind
        return said | {"shape colour": color, "shape": kind, "count": found == len(scene.subjects)}
    picture = evaluate.to_lab(pixels)
    faces = evaluate.detect_faces(picture)
    said["count"] = len(faces) == len(scene.characters)
    if len(scene.characters) == 1:
        who = scene.characters[0]
        for name, look in (
            ("hair", evaluate.detect_hair),
            ("shirt", evaluate.detect_shirt),
            ("eyes", evaluate.detect_eyes),
        ):
            said[name] = bool(faces) and look(picture, faces[0]) == getattr(who, name)
    return said


def measure_accuracy(pictures: Iterable[tuple[Scene, Pixels]]) -> Accuracies:
    """How often each thing is right."""
    right: dict[str, list[bool]] = defaultdict(list)
    for scene, pixels in pictures:
        for name, is_right in evaluate_image(scene, pixels).items():
            right[name].append(is_right)
    return {name: round(sum(found) / len(found), 3) for name, found in right.items()}


def measure_tags(easel: DemoGenerator, count: int, size: Size = (512, 512), scale: float = 5.0) -> Accuracies:
    """Shares over random prompts."""
    asked = random_scenes(count)
    return measure_accuracy(
        (scene, easel.generate(", ".join(scene.tags()), 1000 + k, size, scale))
        for k, scene in enumerate(asked)
    )


def measure_levels(easel: DemoGenerator, infinite: bool) -> dict[str, Accuracies]:
    """Levels with guidance, which mends much of what a finite start spoils, and without."""
    own = easel if infinite else DemoGenerator(Pipeline(easel.pipeline.weights, sigma_max=14.6))
    return {f"scale {scale:g}": measure_levels_at(own, scale) for scale in (5.0, 1.0)}


def measure_levels_at(easel: DemoGenerator, scale: float, seeds: int = 16) -> Accuracies:
    """The background's mean luminance when black and when white are asked for, and the mean error of both."""
    found = {
        word: [
            evaluate.measure_luminance(
                easel.generate(f"1girl, solo, red hair, {word} background", seed, (256, 256), scale)
            )
            for seed in range(seeds)
        ]
        for word in ("black", "white")
    }
    error = np.mean([*found["black"], *(1 - level for level in found["white"])])
    return {
        **{word: round(float(np.mean(level)), 4) for word, level in found.items()},
        "error": round(float(error), 4),
    }


def measure_guidance(easel: DemoGenerator, seeds: int = 12) -> dict[str, object]:
    """What scale, UC, weights and rescale do; the shares of red and the saturations are means over seeds."""

    def mean(measure: Callable[[Pixels], float], draw: Callable[[int], Pixels]) -> float:
        return round(float(np.mean([measure(draw(seed)) for seed in range(seeds)])), 4)

    def red(pixels: Pixels) -> float:
        return evaluate.measure_color_share(pixels, "red")

    person = "1girl, solo, red hair, blue background"
    hearts = [measure_undesired(easel, seed) for seed in range(seeds)]
    weights = ("[[[red heart]]]", "red heart", "{{{red heart}}}")
    return {
        "scale 1": measure_tags(easel, 40, scale=1.0),
        "scale 5": measure_tags(easel, 40, scale=5.0),
        "a heart's colour": round(float(np.mean([before for before, _ in hearts])), 4),
        "the same in the UC": round(float(np.mean([after for _, after in hearts])), 4),
        "red by weight": {
            said: mean(red, partial(easel.generate, f"no humans, {said}, blue heart, white background"))
            for said in weights
        },
        "saturation by rescale": {
            str(share): mean(
                evaluate.measure_saturation, partial(easel.generate, person, scale=9.0, rescale=share)
            )
            for share in (0.0, 0.5, 1.0)
        },
    }


def measure_undesired(easel: DemoGenerator, seed: int, size: Size = (512, 512)) -> tuple[float, float]:
    """The share of the color that a heart of no said color has, and what is left of it once it is in the UC."""
    prompt = "no humans, heart, white background"
    drawn = easel.generate(prompt, seed, size, negative="")
    color = evaluate.detect_color(drawn)
    if color is None:
        return 0.0, 0.0
    again = easel.generate(prompt, seed, size, negative=f"{color} heart")
    return evaluate.measure_color_share(drawn, color), evaluate.measure_color_share(again, color)


def measure_quality(easel: DemoGenerator, pairs: int = 30) -> Accuracies:
    """How often quality tags are sharper than their opposite with the same seed."""
    won = 0
    for seed, scene in enumerate(random_scenes(pairs)):
        tags = ", ".join(scene.tags())
        good = easel.generate(tags, seed, negative="")
        bad = easel.generate(f"{tags}, worst quality, lowres", seed, negative="", quality=False)
        won += evaluate.measure_sharpness(good) > evaluate.measure_sharpness(bad)
    return {"good is sharper": won / pairs}


PARTS: dict[str, Callable[[DemoGenerator, int], object]] = {
    "512x512": lambda easel, count: measure_tags(easel, count),
    "832x1216": lambda easel, count: measure_tags(easel, count, (832, 1216)),
    "infinite noise": lambda easel, _: measure_levels(easel, infinite=True),
    "sigma_max 14.6": lambda easel, _: measure_levels(easel, infinite=False),
    "guidance": lambda easel, _: measure_guidance(easel),
    "quality": lambda easel, _: measure_quality(easel),
    "infill": lambda _, __: demo_inputs.measure_infill(single_subject_scenes(40)),
    "adapter": lambda _, __: demo_inputs.measure_adapter(single_subject_scenes(40)),
    "seconds": lambda easel, _: measure_seconds(easel),
}


def single_subject_scenes(count: int) -> list[Scene]:
    """Scenes of one subject."""
    return [scene for scene in random_scenes(3 * count) if len(scene.subjects) == 1][:count]


def measure_seconds(easel: DemoGenerator, times: int = 3) -> Accuracies:
    """The median time of a picture on this machine, as it was."""
    taken: dict[str, list[float]] = defaultdict(list)
    for seed in range(times + 1):
        for size in ((512, 512), (832, 1216)):
            began = perf_counter()
            easel.generate("1girl, solo, red hair, smile, white background", seed, size)
            if seed:
                taken[f"{size[0]}x{size[1]}"].append(perf_counter() - began)
    return {name: round(median(found), 2) for name, found in taken.items()}


def main() -> None:
    """Measure the parts asked for and keep them beside what was measured before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--prompts", type=int, default=110)
    arguments = parser.parse_args()
    easel, file = DemoGenerator(Pipeline(load_weights(arguments.model))), RESULTS / "demo_semantics.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    for part in arguments.parts:
        kept[part] = PARTS[part](easel, arguments.prompts)
        print(part, kept[part], flush=True)
        file.write_text(json.dumps({**kept, "machine": machine()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
