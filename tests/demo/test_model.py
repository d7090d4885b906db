from typing import Any

import pytest
import torch
from paths import ROOT

from demo.model import POOLED_SPREAD, DemoModel, as_served, load_model, save_model
from demo.text_encoders import split_captions
from demo.train_vae import build_vae
from pipelines.job import Guidance, Job, Prompts
from pipelines.text.tokens import EMPTY
from server.config.profiles import find_profile, load_profiles
from server.request.schema import Parameters
from server.request.tasks import halved, levels

CAPTIONS = split_captions(["1girl, red hair, parliament", ""], 1)
TIMES = torch.tensor([999, 100])
IDS = torch.tensor([[64.0, 48, 0, 0, 64, 48]]).expand(2, -1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An untrained model and its file."""
    torch.manual_seed(1)
    model, file = DemoModel().eval(), tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(model, build_vae(), file)
    return model, file


def predict(model, noisy):
    with torch.inference_mode():
        return model(noisy, TIMES, CAPTIONS, IDS)


def make_noise(channels):
    return torch.randn(2, channels, 8, 6, generator=torch.Generator().manual_seed(channels))


def test_a_model_is_loaded_as_it_was_saved(saved):
    model, file = saved
    loaded, _ = load_model(file)
    velocities = predict(model, make_noise(4))
    # the file is in half precision
    torch.testing.assert_close(predict(loaded.eval(), make_noise(4)), velocities, atol=4e-3, rtol=0)
    assert not torch.equal(velocities[0], velocities[1])


def test_a_new_inpainting_unet_ignores_the_inpainting_channels(saved):
    model, _ = load_model(saved[1])
    inpainting, _ = load_model(saved[1], channels=9)
    noisy = make_noise(9)
    torch.testing.assert_close(predict(inpainting.eval(), noisy), predict(model.eval(), noisy[:, :4]))


def test_centering_spreads_pooled_vectors_and_keeps_the_output():
    torch.manual_seed(2)
    model = DemoModel().eval()
    before = predict(model, make_noise(4))
    model.center_pooled(CAPTIONS)
    # float32 through factors of about a hundred
    torch.testing.assert_close(predict(model, make_noise(4)), before, atol=1e-4, rtol=0)
    pooled = model.language(CAPTIONS)[1]
    spread = float((pooled - pooled.mean(dim=0)).norm(dim=1).mean().detach())
    assert spread == pytest.approx(POOLED_SPREAD, rel=1e-3)


@pytest.mark.parametrize(("halvings", "counts"), [(0, (0, 0, 0)), (1, (1, 0, 0)), (2, (2, 1, 0))])
def test_training_shrinks_large_images_as_the_server_does(saved, monkeypatch, halvings, counts):
    model, times = saved[0], torch.tensor([999, 500, 100])
    noisy = torch.randn(3, 4, 32, 32, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr("demo.model.SHRUNK_ABOVE", 256 * 256 // 4**halvings)
    captions, ids = CAPTIONS[:1] * 3, IDS[:1].expand(3, -1)
    with torch.inference_mode():
        batch = model(noisy, times, captions, ids)
        for k, count in enumerate(counts):
            encoded = model.language(captions[:1])
            with model._shrink.shrink(count):
                alone = model._predict_velocity(noisy[k:][:1], times[k:][:1], *encoded, ids[:1])
            # the order of additions may depend on the batch size
            torch.testing.assert_close(batch[k], alone[0], atol=1e-5, rtol=0)


def test_pooled_only_captions_have_the_context_of_an_empty_one(saved):
    model, noisy = saved[0], make_noise(4)
    pooled_only = torch.tensor([True, False])
    with torch.inference_mode():
        velocities = model(noisy, TIMES, CAPTIONS[:1] * 2, IDS, None, pooled_only)
        context, pooled = model.language(CAPTIONS[:1] * 2)
        context[0] = model.language([(EMPTY,)])[0][0]
        torch.testing.assert_close(velocities, model._predict_velocity(noisy, TIMES, context, pooled, IDS))


@pytest.mark.parametrize("size", [(256, 256), (512, 512), (640, 640), (672, 640), (832, 1216), (1248, 1824)])
def test_jobs_follow_the_demo_profile(size: tuple[int, int]):
    profile = find_profile(load_profiles(ROOT / "configs" / "profiles"), "demo")
    job = as_served(Job("m", Prompts("a"), *size, 20, "k_euler", "native", Guidance(1.0), (1,)))
    assert job.pyramid == levels(profile, size)
    assert job.deep_shrink == halved(Parameters.model_validate({}), profile, size)


def test_units_reset_for_pooled_vectors_are_active_and_contribute_nothing_at_first():
    torch.manual_seed(6)
    model = DemoModel()
    captions = split_captions([f"{color} hair" for color in ("red", "blue", "green", "pink", "brown")], 1)
    model.center_pooled(captions)
    model.enable_pooled()
    pooled = model.language(captions)[1].detach()
    embedding: Any = model.unet.add_embedding
    half = embedding.linear_1.out_features // 2
    inputs = embedding.linear_1(torch.cat([pooled, torch.zeros(len(pooled), 192)], dim=1))[:, :half].detach()
    assert 0.3 < float(inputs.std()) < 3
    assert float((inputs > 0).float().mean()) == pytest.approx(0.5, abs=0.2)
    assert torch.count_nonzero(embedding.linear_2.weight[:, :half]) == 0
