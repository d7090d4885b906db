"""Measures the demo's inpainting UNet and image adapter; parts of benchmarks/demo_semantics.py."""

from dataclasses import replace

import numpy as np

from demo import evaluate
from demo.captions import HAIRCUTS, choose_word
from demo.checkpoint import DEMO, INPAINTING, VIBE
from demo.masks import Mask
from demo.palette import HAIR, PLAIN
from demo.scenes import Scene
from demo.shapes import KINDS, Shape
from demo.train_adapter import generate_from_references, load_pipeline
from demo.train_inpainting import infill_image
from demo.train_unet import build_job
from pipelines.pipeline import Pipeline
from pipelines.types import Pixels
from pipelines.weights.load import load_weights

SIZE = (512, 512)


def measure_infill(scenes: list[Scene]) -> dict[str, float]:
    """Return how often an infilled subject is the prompt's, and the largest change of a pixel outside the mask.

    A shape is replaced by one of another kind and color, a head by one with another hair color.
    """
    pipeline = Pipeline(load_weights(DEMO, inpainting=INPAINTING))
    rng = np.random.default_rng(7)
    correct: list[bool] = []
    largest = 0
    for seed, scene in enumerate(scenes):
        image = scene.draw(*SIZE, rng)
        new_scene, mask = _change_subject(scene, rng), _build_mask(scene)
        job = build_job(", ".join(new_scene.tags()), SIZE, seed, steps=28)
        result = infill_image(pipeline, image, mask, job)
        is_outside = ~np.kron(mask, np.ones((8, 8), bool))
        largest = max(largest, int(np.abs(result[is_outside].astype(int) - image[is_outside]).max()))
        correct.append(shows_subject(new_scene, result))
    return {"new tag inside": float(np.mean(correct)), "largest change outside": largest}


def _change_subject(scene: Scene, rng: np.random.Generator) -> Scene:
    if scene.characters:
        (character,) = scene.characters
        hair = choose_word(rng, [word for word in HAIR if word not in (character.hair, scene.background)])
        haircut = character.haircut if character.boy else choose_word(rng, HAIRCUTS)
        return replace(scene, subjects=(replace(character, hair=hair, haircut=haircut),))
    shape = scene.subjects[0]
    assert isinstance(shape, Shape)
    kind = choose_word(rng, [kind for kind in KINDS if kind != shape.kind])
    color = choose_word(rng, [word for word in PLAIN if word not in (shape.color, scene.background)])
    return replace(scene, subjects=(Shape(kind, color),))


def _build_mask(scene: Scene) -> Mask:
    """Return a mask over a shape in the middle, or over the upper two thirds of a character."""
    mask = np.zeros((SIZE[1] // 8, SIZE[0] // 8), bool)
    if scene.characters:
        mask[2:44, 4:-4] = True
    else:
        mask[6:-6, 6:-6] = True
    return mask


def shows_subject(scene: Scene, pixels: Pixels) -> bool:
    """Return whether an image has the hair color of a scene's character, or the kind and color of its shape."""
    if not scene.characters:
        shape = scene.subjects[0]
        assert isinstance(shape, Shape)
        return evaluate.detect_color(pixels) == shape.color and evaluate.detect_shape(pixels) == shape.kind
    lab = evaluate.to_lab(pixels)
    faces = evaluate.detect_faces(lab)
    return bool(faces) and evaluate.detect_hair(lab, faces[0]) == scene.characters[0].hair


def matches_palette(scene: Scene, pixels: Pixels) -> bool:
    """Return whether an image has the colors of a scene: its background, and its hair or its shape's color."""
    if evaluate.detect_background(pixels) != scene.background:
        return False
    if scene.characters:
        return shows_subject(scene, pixels)
    shape = scene.subjects[0]
    assert isinstance(shape, Shape)
    return evaluate.detect_color(pixels) == shape.color


def measure_adapter(scenes: list[Scene]) -> dict[str, float]:
    """Return how often images have the reference's palette, by scale of the adapter. Prompts have count tags only."""
    pipeline, rng = load_pipeline(DEMO, VIBE), np.random.default_rng(8)
    matches: dict[float, list[bool]] = {1.0: [], 0.0: []}
    for seed, scene in enumerate(scenes):
        reference = scene.draw(224, 224, rng)
        job = build_job(", ".join(scene.count_tags()), SIZE, seed, steps=28)
        for scale, results in matches.items():
            pixels = generate_from_references(pipeline, [reference], job, scale)
            results.append(matches_palette(scene, pixels))
    return {f"palette at {scale}": float(np.mean(results)) for scale, results in matches.items()}
