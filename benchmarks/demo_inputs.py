"""What the demo's inpainting UNet and image adapter do with a picture; parts of benchmarks/demo_semantics.py."""

from dataclasses import replace

import numpy as np

from demo import evaluate
from demo.adapter import load_adapter
from demo.captions import HAIRCUTS, choose_word
from demo.checkpoint import DEMO, INPAINTING, VIBE
from demo.masks import Mask
from demo.palette import HAIR, PLAIN
from demo.scenes import Scene
from demo.shapes import KINDS, Shape
from demo.train_adapter import generate_from_reference
from demo.train_inpainting import infill_image
from demo.train_unet import build_job
from pipelines.pipeline import Pipeline
from pipelines.types import Pixels
from pipelines.weights.load import load_weights

SIZE = (512, 512)


def measure_infill(scenes: list[Scene]) -> dict[str, float]:
    """How often what the prompt says is there after drawing the subject anew, and what changed around it.

    A shape is to become another one of another color; a head is to have other hair.
    """
    pipeline = Pipeline(load_weights(DEMO, inpainting=INPAINTING))
    rng = np.random.default_rng(7)
    right: list[bool] = []
    changed = 0
    for seed, scene in enumerate(scenes):
        picture = scene.draw(*SIZE, rng)
        new, mask = _change_subject(scene, rng), _build_mask(scene)
        job = build_job(", ".join(new.tags()), SIZE, seed, steps=28)
        drawn = infill_image(pipeline, picture, mask, job)
        kept = ~np.kron(mask, np.ones((8, 8), bool))
        changed = max(changed, int(np.abs(drawn[kept].astype(int) - picture[kept]).max()))
        right.append(shows_subject(new, drawn))
    return {"new tag inside": float(np.mean(right)), "largest change outside": changed}


def _change_subject(scene: Scene, rng: np.random.Generator) -> Scene:
    if scene.characters:
        (who,) = scene.characters
        hair = choose_word(rng, [word for word in HAIR if word not in (who.hair, scene.background)])
        cut = who.haircut if who.boy else choose_word(rng, HAIRCUTS)
        return replace(scene, subjects=(replace(who, hair=hair, cut=cut),))
    old = scene.subjects[0]
    assert isinstance(old, Shape)
    kind = choose_word(rng, [kind for kind in KINDS if kind != old.kind])
    color = choose_word(rng, [word for word in PLAIN if word not in (old.color, scene.background)])
    return replace(scene, subjects=(Shape(kind, color),))


def _build_mask(scene: Scene) -> Mask:
    """A mask over a shape in the middle, or over the upper two thirds of a character."""
    mask = np.zeros((SIZE[1] // 8, SIZE[0] // 8), bool)
    if scene.characters:
        mask[2:44, 4:-4] = True
    else:
        mask[6:-6, 6:-6] = True
    return mask


def shows_subject(scene: Scene, pixels: Pixels) -> bool:
    """Whether a character's hair, or a shape's kind and color, are as a scene says."""
    if not scene.characters:
        shape = scene.subjects[0]
        assert isinstance(shape, Shape)
        return evaluate.detect_color(pixels) == shape.color and evaluate.detect_shape(pixels) == shape.kind
    picture = evaluate.to_lab(pixels)
    faces = evaluate.detect_faces(picture)
    return bool(faces) and evaluate.detect_hair(picture, faces[0]) == scene.characters[0].hair


def matches_palette(scene: Scene, pixels: Pixels) -> bool:
    """Whether a picture has the palette of a scene: its background, and its hair or its shape's color."""
    if evaluate.detect_background(pixels) != scene.background:
        return False
    if scene.characters:
        return shows_subject(scene, pixels)
    shape = scene.subjects[0]
    assert isinstance(shape, Shape)
    return evaluate.detect_color(pixels) == shape.color


def measure_adapter(scenes: list[Scene]) -> dict[str, float]:
    """How often a reference's palette is adopted, by strength; the prompt says nothing but who is there."""
    weights = load_weights(DEMO)
    eye = load_adapter(VIBE, weights.unet.module)  # pyright: ignore[reportAttributeAccessIssue]
    rng = np.random.default_rng(8)
    found: dict[float, list[bool]] = {1.0: [], 0.0: []}
    for seed, scene in enumerate(scenes):
        reference = scene.draw(224, 224, rng)
        for strength, adopted in found.items():
            job = build_job(", ".join(scene.count_tags()), SIZE, seed, steps=28)
            adopted.append(
                matches_palette(scene, generate_from_reference(weights, eye, reference, job, strength))
            )
    return {f"palette at {strength}": float(np.mean(adopted)) for strength, adopted in found.items()}
