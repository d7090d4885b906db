"""Claim: images of the demo model show what their tags say.

Random prompts from its tags with fixed seeds, k_euler, 28 steps, scale 5, NAI's quality tags and first UC preset.
demo/evaluate.py judges the images from their pixels alone. Measured are the shares of images with the right background,
hair, shape, shirt, eyes and count; black and white backgrounds with and without the step from infinite noise; and the
effect of guidance, prompt weights, UC and quality tags.
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
from demo.characters import Character
from demo.checkpoint import DEMO
from demo.model import as_served
from demo.palette import PLAIN
from demo.scenes import Scene
from demo.shapes import KINDS, Shape
from pipelines.job import Guidance, Job, Pass, Prompts
from pipelines.pipeline import Pipeline
from pipelines.types import Pixels, Size
from pipelines.weights.load import load_weights
from server.config.resources import configs
from server.request.presets import PromptTexts, apply_presets, load_presets

RESULTS = Path(__file__).parent / "results"
Scores = dict[str, float]


@dataclass(frozen=True, slots=True)
class DemoGenerator:
    """A pipeline with the settings that images are generated with."""

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
        """Generate an image. Without a negative prompt the first UC preset is added."""
        presets = load_presets(configs() / "presets.toml")
        texts = PromptTexts(prompt, negative or "", quality, 0 if negative is None else None)
        texts = apply_presets(texts, presets, "nai-diffusion-3", "auto")
        prompts = Prompts(texts.positive, texts.negative)
        guidance = Guidance(scale, rescale=rescale)
        passes = (as_served(Pass(*size, (seed,))),)
        return self.pipeline.run(Job("demo", prompts, 28, "k_euler", "native", guidance, passes)).images[0]


def sample_scenes(count: int) -> list[Scene]:
    """Return random scenes whose colors demo/evaluate.py can detect: single characters, pairs, and shapes."""
    rng = np.random.default_rng(2026)
    return [
        _random_characters(rng, 1 + (k % 10 == 6)) if k % 10 < 7 else _random_shapes(rng)
        for k in range(count)
    ]


def draw_plain_people(rng: np.random.Generator, count: int) -> tuple[Character, ...]:
    """Return random characters without what hides or changes the colors that demo/evaluate.py looks for."""
    plain = {
        "skin": "light",
        "hat": False,
        "glasses": False,
        "closed_eyes": False,
        "bow": None,
        "blush": False,
    }
    return tuple(replace(random_character(rng), **plain) for _ in range(count))


def _random_characters(rng: np.random.Generator, count: int) -> Scene:
    people = draw_plain_people(rng, count)
    used = {word for character in people for word in (character.hair, character.shirt)} | {"yellow", "pink"}
    background = choose_word(rng, [word for word in PLAIN if word not in used])
    return Scene(people, background, choose_word(rng, ("upper body", "full body", "chibi")))


def _random_shapes(rng: np.random.Generator) -> Scene:
    background = choose_word(rng, PLAIN)
    shape = Shape(choose_word(rng, KINDS), choose_word(rng, [word for word in PLAIN if word != background]))
    return Scene((shape,) * int(rng.integers(1, 3)), background)


def evaluate_image(scene: Scene, pixels: Pixels) -> dict[str, bool]:
    """Return for each property of a scene whether an image has it."""
    correct = {"background": evaluate.detect_background(pixels) == scene.background}
    if not scene.characters:
        (shape,) = {subject for subject in scene.subjects if isinstance(subject, Shape)}
        count = len(evaluate.find_components(evaluate.segment_subject(pixels)))
        correct["shape colour"] = evaluate.detect_color(pixels) == shape.color
        correct["shape"] = evaluate.detect_shape(pixels) == shape.kind
        return correct | {"count": count == len(scene.subjects)}
    lab = evaluate.to_lab(pixels)
    faces = evaluate.detect_faces(lab)
    correct["count"] = len(faces) == len(scene.characters)
    if len(scene.characters) == 1:
        character = scene.characters[0]
        for name, detect in (
            ("hair", evaluate.detect_hair),
            ("shirt", evaluate.detect_shirt),
            ("eyes", evaluate.detect_eyes),
        ):
            correct[name] = bool(faces) and detect(lab, faces[0]) == getattr(character, name)
    return correct


def measure_accuracy(images: Iterable[tuple[Scene, Pixels]]) -> Scores:
    """Return how often each property is correct."""
    results: dict[str, list[bool]] = defaultdict(list)
    for scene, pixels in images:
        for name, is_correct in evaluate_image(scene, pixels).items():
            results[name].append(is_correct)
    return {name: round(sum(values) / len(values), 3) for name, values in results.items()}


def measure_tags(generator: DemoGenerator, count: int, size: Size = (512, 512), scale: float = 5.0) -> Scores:
    """Return how often each property is correct for random prompts."""
    return measure_accuracy(
        (scene, generator.generate(", ".join(scene.tags()), 1000 + k, size, scale))
        for k, scene in enumerate(sample_scenes(count))
    )


def measure_levels(generator: DemoGenerator, infinite: bool) -> dict[str, Scores]:
    """Measure levels with guidance, which corrects most of the error of a finite start, and without."""
    if not infinite:
        generator = DemoGenerator(Pipeline(generator.pipeline.weights, sigma_max=14.6))
    return {f"scale {scale:g}": measure_levels_at(generator, scale) for scale in (5.0, 1.0)}


def measure_levels_at(generator: DemoGenerator, scale: float, seeds: int = 16) -> Scores:
    """Return the mean luminance of backgrounds requested black and white, and the mean error of both."""
    levels = {
        word: [
            evaluate.measure_luminance(
                generator.generate(f"1girl, solo, red hair, {word} background", seed, (256, 256), scale)
            )
            for seed in range(seeds)
        ]
        for word in ("black", "white")
    }
    error = np.mean([*levels["black"], *(1 - level for level in levels["white"])])
    return {
        **{word: round(float(np.mean(values)), 4) for word, values in levels.items()},
        "error": round(float(error), 4),
    }


def measure_guidance(generator: DemoGenerator, seeds: int = 12) -> dict[str, object]:
    """Measure the effects of scale, UC, prompt weights and rescale. Shares and saturations are means over seeds."""

    def mean(measure: Callable[[Pixels], float], generate: Callable[[int], Pixels]) -> float:
        return round(float(np.mean([measure(generate(seed)) for seed in range(seeds)])), 4)

    def measure_red(pixels: Pixels) -> float:
        return evaluate.measure_color_share(pixels, "red")

    person = "1girl, solo, red hair, blue background"
    hearts = [measure_undesired(generator, seed) for seed in range(seeds)]
    texts = ("[[[red heart]]]", "red heart", "{{{red heart}}}")
    return {
        "scale 1": measure_tags(generator, 40, scale=1.0),
        "scale 5": measure_tags(generator, 40, scale=5.0),
        "a heart's colour": round(float(np.mean([before for before, _ in hearts])), 4),
        "the same in the UC": round(float(np.mean([after for _, after in hearts])), 4),
        "red by weight": {
            text: mean(
                measure_red, partial(generator.generate, f"no humans, {text}, blue heart, white background")
            )
            for text in texts
        },
        "saturation by rescale": {
            str(rescale): mean(
                evaluate.measure_saturation, partial(generator.generate, person, scale=9.0, rescale=rescale)
            )
            for rescale in (0.0, 0.5, 1.0)
        },
    }


def measure_undesired(generator: DemoGenerator, seed: int, size: Size = (512, 512)) -> tuple[float, float]:
    """Return the share of the color of a heart prompted without one, and its share once that color is in the UC."""
    prompt = "no humans, heart, white background"
    before = generator.generate(prompt, seed, size, negative="")
    color = evaluate.detect_color(before)
    if color is None:
        return 0.0, 0.0
    after = generator.generate(prompt, seed, size, negative=f"{color} heart")
    return evaluate.measure_color_share(before, color), evaluate.measure_color_share(after, color)


def measure_quality(generator: DemoGenerator, pairs: int = 30) -> Scores:
    """Return how often images with quality tags are sharper than those with bad ones and the same seed."""
    sharper = 0
    for seed, scene in enumerate(sample_scenes(pairs)):
        tags = ", ".join(scene.tags())
        good = generator.generate(tags, seed, negative="")
        bad = generator.generate(f"{tags}, worst quality, lowres", seed, negative="", quality=False)
        sharper += evaluate.measure_sharpness(good) > evaluate.measure_sharpness(bad)
    return {"good is sharper": sharper / pairs}


PARTS: dict[str, Callable[[DemoGenerator, int], object]] = {
    "512x512": lambda generator, count: measure_tags(generator, count),
    "832x1216": lambda generator, count: measure_tags(generator, count, (832, 1216)),
    "infinite noise": lambda generator, _: measure_levels(generator, infinite=True),
    "sigma_max 14.6": lambda generator, _: measure_levels(generator, infinite=False),
    "guidance": lambda generator, _: measure_guidance(generator),
    "quality": lambda generator, _: measure_quality(generator),
    "infill": lambda _, __: demo_inputs.measure_infill(sample_single_scenes(40)),
    "adapter": lambda _, __: demo_inputs.measure_adapter(sample_single_scenes(40)),
    "seconds": lambda generator, _: measure_seconds(generator),
}


def sample_single_scenes(count: int) -> list[Scene]:
    """Return random scenes of a single subject."""
    return [scene for scene in sample_scenes(3 * count) if len(scene.subjects) == 1][:count]


def measure_seconds(generator: DemoGenerator, times: int = 3) -> Scores:
    """Return the median time of an image on this machine."""
    durations: dict[str, list[float]] = defaultdict(list)
    for seed in range(times + 1):
        for size in ((512, 512), (832, 1216)):
            began = perf_counter()
            generator.generate("1girl, solo, red hair, smile, white background", seed, size)
            if seed:
                durations[f"{size[0]}x{size[1]}"].append(perf_counter() - began)
    return {name: round(median(values), 2) for name, values in durations.items()}


def main() -> None:
    """Measure the given parts and add them to the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"default: all of {', '.join(PARTS)}")
    parser.add_argument("--model", type=Path, default=DEMO, help="model file (default: the repository's)")
    parser.add_argument("--prompts", type=int, default=110, help="number of random prompts (default: 110)")
    arguments = parser.parse_args()
    generator = DemoGenerator(Pipeline(load_weights(arguments.model)))
    file = RESULTS / "demo_semantics.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for part in arguments.parts:
        results[part] = PARTS[part](generator, arguments.prompts)
        print(part, results[part], flush=True)
        file.write_text(json.dumps({**results, "machine": machine()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
