"""Claim: vibe transfer takes over the colors of a reference image, as far as its strength says.

The demo model draws with its own adapter; prompts have count tags only, so colors can come from the reference alone.
Measured, each over the same seeds: how often the palette is the reference's, by strength; how often two references both
have an effect; how often a negative strength moves away; and what readings of `information_extracted` leave of a
reference. Run: python -m benchmarks.vibes [PARTS] [--scenes 40] [--sheet FILE.png]
"""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.demo_inputs import matches_palette
from benchmarks.demo_semantics import sample_single_scenes
from benchmarks.machine import machine
from demo import evaluate
from demo.checkpoint import DEMO, VIBE
from demo.model import as_served
from demo.scenes import Scene, make_grid
from demo.train_adapter import generate_from_references, load_pipeline
from demo.train_unet import build_job
from pipelines.adapters.vibe import VibeEncoder
from pipelines.job import EncodedVibe, Job, RgbImage, Vibe, VibeJob
from pipelines.pipeline import Pipeline
from pipelines.types import Pixels

RESULTS = Path(__file__).parent / "results"
SIDE, STEPS = 256, 28
Scores = dict[str, float]
STRENGTHS = (1.0, 0.8, 0.6, 0.3, 0.0)
SHARES = (0.75, 0.5, 0.25, 0.1, 0.0)


@dataclass(frozen=True, slots=True)
class Trials:
    """Scenes, a reference drawn from each, and a pipeline; `tiles` become a sheet to look at."""

    pipeline: Pipeline
    scenes: list[Scene]
    references: list[Pixels]
    tiles: list[Pixels] = field(default_factory=list[Pixels])

    def job(self, number: int, side: int = SIDE) -> Job:
        """Return a scene's job: its count tags and its number as the seed."""
        job = build_job(", ".join(self.scenes[number].count_tags()), (side, side), number, steps=STEPS)
        return replace(job, passes=(as_served(job.passes[0]),))

    def draw(self, number: int, others: list[int], *strengths: float, side: int = SIDE) -> Pixels:
        """Draw a scene's prompt with the references of scenes."""
        references = [self.references[other] for other in others]
        return generate_from_references(self.pipeline, references, self.job(number, side), *strengths)

    def show(self, *images: Pixels) -> None:
        """Add images to the sheet."""
        self.tiles.extend(np.asarray(Image.fromarray(image).resize((128, 128))) for image in images)


def measure_palette(trials: Trials) -> Scores:
    """Return how often the palette is the reference's, by strength, at 512 x 512."""
    matches: dict[float, list[bool]] = {strength: [] for strength in STRENGTHS}
    for number, scene in enumerate(trials.scenes):
        drawn = {strength: trials.draw(number, [number], strength, side=512) for strength in STRENGTHS}
        for strength, pixels in drawn.items():
            matches[strength].append(matches_palette(scene, pixels))
        trials.show(trials.references[number], *drawn.values())
    return {f"palette at {strength:g}": _mean(values) for strength, values in matches.items()}


def measure_mix(trials: Trials) -> Scores:
    """Return how often an image from two references is nearer to each one's image than the other one's is."""
    both, first_only = [], []
    for number in range(len(trials.scenes)):
        other = _choose_other(trials.scenes, number)
        first, second = (trials.draw(number, [one], 1.0) for one in (number, other))
        mixed = trials.draw(number, [number, other], 0.5, 0.5)
        apart = _distance(first, second)
        both.append(_distance(mixed, first) < apart and _distance(mixed, second) < apart)
        uneven = trials.draw(number, [number, other], 0.8, 0.2)
        first_only.append(_distance(uneven, first) < _distance(uneven, second))
        trials.show(trials.references[number], trials.references[other], first, second, mixed, uneven)
    return {"both have an effect": _mean(both), "0.8 outweighs 0.2": _mean(first_only)}


def measure_negative(trials: Trials) -> Scores:
    """Return how often an image is further from the reference's colors at a negative strength than without it."""
    results: dict[float, list[bool]] = {-0.3: [], -0.6: [], 0.6: []}
    for number, scene in enumerate(trials.scenes):
        reference = trials.references[number]
        plain = trials.draw(number, [], side=SIDE)
        drawn = {strength: trials.draw(number, [number], strength) for strength in results}
        for strength, pixels in drawn.items():
            results[strength].append(_color_distance(pixels, reference) > _color_distance(plain, reference))
        trials.show(reference, plain, *drawn.values(), scene.draw(SIDE, SIDE, np.random.default_rng(1)))
    return {f"further at {strength:g}": _mean(values) for strength, values in results.items()}


def measure_information(trials: Trials) -> Scores:
    """Return how often palette and content are the reference's, by reading and share of information."""
    scores: Scores = {}
    for name, encode in READINGS.items():
        for share in SHARES:
            palette, content = [], []
            for number, scene in enumerate(trials.scenes):
                vibe = Vibe(encode(trials.pipeline, trials.references[number], share), 1.0, share)
                job = trials.job(number)
                pixels = trials.pipeline.run(replace(job, vibes=(vibe,))).images[0]
                palette.append(matches_palette(scene, pixels))
                content.append(shows_content(scene, pixels))
            scores |= {
                f"{name} {share:g}: palette": _mean(palette),
                f"{name} {share:g}: content": _mean(content),
            }
    return scores


def shows_content(scene: Scene, pixels: Pixels) -> bool:
    """Return whether an image has what is fine in a scene: the kind of its shape, or the eyes' color."""
    if not scene.characters:
        return evaluate.detect_shape(pixels) == scene.subjects[0].kind  # pyright: ignore[reportAttributeAccessIssue]
    lab = evaluate.to_lab(pixels)
    faces = evaluate.detect_faces(lab)
    return bool(faces) and evaluate.detect_eyes(lab, faces[0]) == scene.characters[0].eyes


def _by_resolution(pipeline: Pipeline, reference: Pixels, share: float) -> EncodedVibe:
    return pipeline.encode_vibe(VibeJob("demo", _to_image(reference), share))


def _by_mean_token(pipeline: Pipeline, reference: Pixels, share: float) -> EncodedVibe:
    tokens = _read(pipeline.encode_vibe(VibeJob("demo", _to_image(reference))))
    return _pack(tokens.mean(0) + share * (tokens - tokens.mean(0)))


def _by_empty_token(pipeline: Pipeline, reference: Pixels, share: float) -> EncodedVibe:
    tokens = _read(pipeline.encode_vibe(VibeJob("demo", _to_image(reference))))
    with torch.inference_mode():
        (nothing,) = _get_encoder(pipeline).prepare([Vibe(_to_image(reference), 1.0)])[1]
    empty = nothing.tokens.numpy()
    return _pack(empty + share * (tokens - empty))


def _get_encoder(pipeline: Pipeline) -> VibeEncoder:
    assert pipeline.vibe is not None
    return pipeline.vibe


READINGS: Mapping[str, Callable[[Pipeline, Pixels, float], EncodedVibe]] = {
    "resolution": _by_resolution,
    "mean of the tokens": _by_mean_token,
    "tokens of no image": _by_empty_token,
}
"""What a share of information may mean: that of the image's resolution, or of the tokens' difference to others."""


def _read(vibe: EncodedVibe) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.frombuffer(vibe.values, "<f4").reshape(vibe.count, vibe.width)


def _pack(tokens: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> EncodedVibe:
    count, width = tokens.shape
    return EncodedVibe(count, width, tokens.astype("<f4").tobytes())


def _to_image(pixels: Pixels) -> RgbImage:
    return RgbImage(pixels.shape[1], pixels.shape[0], pixels.tobytes())


def _choose_other(scenes: list[Scene], number: int) -> int:
    """Return the next scene of the same kind of subject that has another background."""
    scene = scenes[number]
    order = [(number + step) % len(scenes) for step in range(1, len(scenes))]
    return next(
        other
        for other in order
        if bool(scenes[other].characters) == bool(scene.characters)
        and scenes[other].background != scene.background
    )


def _distance(image: Pixels, other: Pixels) -> float:
    return float(np.linalg.norm(evaluate.to_lab(image) - evaluate.to_lab(other), axis=-1).mean())


def _color_distance(image: Pixels, other: Pixels) -> float:
    """Return the distance of two images' mean colors in CIELAB."""
    first, second = (evaluate.to_lab(pixels).reshape(-1, 3).mean(0) for pixels in (image, other))
    return float(np.linalg.norm(first - second))


def _mean(values: list[bool]) -> float:
    return round(float(np.mean(values)), 3)


PARTS: Mapping[str, Callable[[Trials], Scores]] = {
    "palette": measure_palette,
    "mix": measure_mix,
    "negative": measure_negative,
    "information": measure_information,
}


def main() -> None:
    """Measure, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="parts to measure (default: all)")
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--adapter", type=Path, default=VIBE, help="adapter file (default: the repository's)")
    parser.add_argument("--sheet", type=Path, help="file for a sheet of the images")
    arguments = parser.parse_args()
    scenes, rng = sample_single_scenes(arguments.scenes), np.random.default_rng(8)
    references = [scene.draw(224, 224, rng) for scene in scenes]
    trials = Trials(load_pipeline(DEMO, arguments.adapter), scenes, references)
    file = RESULTS / "vibes.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for part in arguments.parts or PARTS:
        scores = PARTS[part](trials)
        results[part] = {"scenes": len(scenes), **scores}
        for name, score in scores.items():
            print(f"{part:12} {name:36} {score:.3f}", flush=True)
    file.write_text(json.dumps(results | {"machine": machine()}, indent=1) + "\n")
    if arguments.sheet and trials.tiles:
        Image.fromarray(make_grid(trials.tiles, 6)).save(arguments.sheet)


if __name__ == "__main__":
    main()
