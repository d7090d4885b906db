from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.demo_inputs import matches_palette
from demo.adapter import INPUT_SIZE, Adapter, load_adapter, preprocess, save_adapter
from demo.characters import Character
from demo.checkpoint import DEMO, VIBE
from demo.model import DemoModel
from demo.scenes import Scene
from demo.text_encoders import split_captions
from demo.train_adapter import generate_from_references, load_pipeline
from demo.train_unet import build_job

pytestmark = pytest.mark.slow

NOISY = torch.randn(1, 4, 8, 6, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def model():
    torch.manual_seed(2)
    return DemoModel().eval().requires_grad_(False)


def predict(model, image_tokens=None):
    ids = torch.tensor([[64.0, 48, 0, 0, 64, 48]])
    return model(NOISY, torch.tensor([500]), split_captions(["1girl"], 1), ids, image_tokens)


def preprocess_level(level):
    return preprocess(np.full((INPUT_SIZE, 160, 3), level, np.uint8))[None]


def test_a_reference_is_centered_on_black_and_normalized():
    image = preprocess_level(255)[0]
    assert image.shape == (3, INPUT_SIZE, INPUT_SIZE)
    assert float(image[0, 0, 0]) == pytest.approx(-0.48145466 / 0.26862954)
    assert float(image[2, 100, 112]) == pytest.approx((1 - 0.40821073) / 0.27577711)


def test_the_scale_determines_the_influence_of_a_reference(model):
    plain = predict(model)
    adapter = Adapter(model.unet).eval().requires_grad_(False)
    changes = []
    for scale in (0.0, 0.5, 1.0):
        adapter.install(model.unet, scale)
        changes.append(float((predict(model, adapter(preprocess_level(200))) - plain).abs().max()))
    assert changes[0] == 0
    assert 0 < changes[1] < changes[2]
    other = predict(model, adapter(preprocess_level(20)))
    assert float((other - predict(model, adapter(preprocess_level(200)))).abs().max()) > 0


def test_an_adapter_is_loaded_as_it_was_saved(model, tmp_path):
    adapter = Adapter(model.unet).eval().requires_grad_(False)
    save_adapter(adapter, tmp_path / "vibe.safetensors")
    loaded = load_adapter(tmp_path / "vibe.safetensors", model.unet)
    for name, tensor in adapter.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor.half().float(), msg=name)


GIRL = Character(
    boy=False, hair="red", haircut="long hair", eyes="blue", mouth="smile", shirt="green", skin="light"
)
REFERENCES = (
    Scene((GIRL,), "yellow", "upper body"),
    Scene((replace(GIRL, hair="blue", shirt="pink", haircut="short hair"),), "orange", "upper body"),
)


@pytest.mark.parametrize("scene", REFERENCES, ids=lambda scene: scene.background)
def test_an_image_has_the_palette_of_its_reference_at_full_scale_and_not_at_zero(scene):
    pipeline = load_pipeline(DEMO, VIBE)
    reference = scene.draw(224, 224, np.random.default_rng(6))
    job = build_job("1girl, solo", (256, 256), seed=4)
    with_adapter, without = (
        generate_from_references(pipeline, [reference], job, scale) for scale in (1.0, 0.0)
    )
    assert matches_palette(scene, with_adapter)
    assert not matches_palette(scene, without)


def test_two_references_both_have_an_effect():
    """Their image is nearer to the image from each than the other one's is."""
    pipeline, job = load_pipeline(DEMO, VIBE), build_job("1girl, solo", (256, 256), seed=4)
    references = [scene.draw(224, 224, np.random.default_rng(6)) for scene in REFERENCES]
    first, second = (
        generate_from_references(pipeline, [reference], job, 1.0).astype(float) for reference in references
    )
    mixed = generate_from_references(pipeline, references, job, 0.5, 0.5).astype(float)
    apart = np.abs(first - second).mean()
    assert 0 < np.abs(mixed - first).mean() < apart
    assert 0 < np.abs(mixed - second).mean() < apart
