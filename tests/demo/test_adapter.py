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
from demo.train_adapter import generate_from_reference
from demo.train_unet import build_job
from pipelines.weights.load import load_weights

NOISY = torch.randn(1, 4, 8, 6, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def model():
    torch.manual_seed(2)
    return DemoModel().eval().requires_grad_(False)


def velocity(model, seen=None):
    ids = torch.tensor([[64.0, 48, 0, 0, 64, 48]])
    return model(NOISY, torch.tensor([500]), split_captions(["1girl"], 1), ids, seen)


def reference(level):
    return preprocess(np.full((INPUT_SIZE, 160, 3), level, np.uint8))[None]


def test_a_reference_lies_on_black_as_clip_wants_it():
    whole = reference(255)[0]
    assert whole.shape == (3, INPUT_SIZE, INPUT_SIZE)
    assert float(whole[0, 0, 0]) == pytest.approx(-0.48145466 / 0.26862954)
    assert float(whole[2, 100, 112]) == pytest.approx((1 - 0.40821073) / 0.27577711)


def test_what_is_seen_counts_by_its_strength(model):
    plain = velocity(model)
    adapter = Adapter(model.unet).eval().requires_grad_(False)
    changes = []
    for strength in (0.0, 0.5, 1.0):
        adapter.install(model.unet, strength)
        changes.append(float((velocity(model, adapter(reference(200))) - plain).abs().max()))
    assert changes[0] == 0
    assert 0 < changes[1] < changes[2]
    other = velocity(model, adapter(reference(20)))
    assert float((other - velocity(model, adapter(reference(200)))).abs().max()) > 0


def test_an_adapter_comes_back_from_its_file(model, tmp_path):
    adapter = Adapter(model.unet).eval().requires_grad_(False)
    save_adapter(adapter, tmp_path / "vibe.safetensors")
    again = load_adapter(tmp_path / "vibe.safetensors", model.unet)
    for name, tensor in adapter.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor.half().float(), msg=name)


GIRL = Character(
    boy=False, hair="red", haircut="long hair", eyes="blue", mouth="smile", shirt="green", skin="light"
)
REFERENCES = (
    Scene((GIRL,), "yellow", "upper body"),
    Scene((replace(GIRL, hair="blue", shirt="pink", cut="short hair"),), "orange", "upper body"),
)


@pytest.mark.parametrize("scene", REFERENCES, ids=lambda scene: scene.background)
def test_a_picture_takes_a_references_palette_at_full_strength_and_not_at_zero(scene):
    weights = load_weights(DEMO)
    eye = load_adapter(VIBE, weights.unet.module)  # pyright: ignore[reportAttributeAccessIssue]
    reference = scene.draw(224, 224, np.random.default_rng(6))
    job = build_job("1girl, solo", (256, 256), seed=4)
    with_eye, without = (
        generate_from_reference(weights, eye, reference, job, strength) for strength in (1.0, 0.0)
    )
    assert matches_palette(scene, with_eye)
    assert not matches_palette(scene, without)
