from typing import Any

import pytest
import torch
from paths import ROOT

from demo import model as draughtsman
from demo.model import POOLED_SPREAD, DemoModel, as_served, load_model, save_model
from demo.text_encoders import split_captions
from demo.train_vae import build_vae
from pipelines.job import Pass
from pipelines.plan import Downscales, choose_downscales
from pipelines.text.tokens import EMPTY
from server.config.profiles import find_profile, load_profiles

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


def velocity(model, sample):
    with torch.inference_mode():
        return model(sample, TIMES, CAPTIONS, IDS)


def sample(channels):
    return torch.randn(2, channels, 8, 6, generator=torch.Generator().manual_seed(channels))


def test_a_model_comes_back_from_its_file(saved):
    model, file = saved
    again, _ = load_model(file)
    # the file is in half precision
    torch.testing.assert_close(
        velocity(again.eval(), sample(4)), velocity(model, sample(4)), atol=4e-3, rtol=0
    )
    assert not torch.equal(velocity(model, sample(4))[0], velocity(model, sample(4))[1])


def test_an_inpainting_unet_begins_without_regard_for_what_is_around(saved):
    model, _ = load_model(saved[1])
    wide, _ = load_model(saved[1], channels=9)
    noisy = sample(9)
    torch.testing.assert_close(velocity(wide.eval(), noisy), velocity(model.eval(), noisy[:, :4]))


def test_recentring_spreads_pooled_vectors_and_changes_nothing_drawn():
    torch.manual_seed(2)
    model = DemoModel().eval()
    before = velocity(model, sample(4))
    model.center_pooled(CAPTIONS)
    # float32 through factors of about a hundred
    torch.testing.assert_close(velocity(model, sample(4)), before, atol=1e-4, rtol=0)
    pooled = model.language(CAPTIONS)[1]
    assert float((pooled - pooled.mean(dim=0)).norm(dim=1).mean().detach()) == pytest.approx(
        POOLED_SPREAD, rel=1e-3
    )


@pytest.mark.parametrize(("known", "often"), [(0, (0, 0, 0)), (1, (1, 0, 0)), (2, (2, 1, 0))])
def test_large_pictures_are_learned_as_they_are_drawn(saved, monkeypatch, known, often):
    model, times = saved[0], torch.tensor([999, 500, 100])
    noisy = torch.randn(3, 4, 32, 32, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(draughtsman, "SHRUNK_ABOVE", 256 * 256 // 4**known)
    captions, ids = CAPTIONS[:1] * 3, IDS[:1].expand(3, -1)
    with torch.inference_mode():
        learned = model(noisy, times, captions, ids)
        for k, count in enumerate(often):
            with model._shrink.shrink(count):
                drawn = model._velocity(noisy[k:][:1], times[k:][:1], *model.language(captions[:1]), ids[:1])
            # alone in its batch, which may add in another order
            torch.testing.assert_close(learned[k], drawn[0], atol=1e-5, rtol=0)


def test_of_unread_captions_the_pooled_vector_alone_is_told(saved):
    model, noisy = saved[0], sample(4)
    unread = torch.tensor([True, False])
    with torch.inference_mode():
        told = model(noisy, TIMES, CAPTIONS[:1] * 2, IDS, None, unread)
        context, pooled = model.language(CAPTIONS[:1] * 2)
        context[0] = model.language([(EMPTY,)])[0][0]
        torch.testing.assert_close(told, model._velocity(noisy, TIMES, context, pooled, IDS))


@pytest.mark.parametrize("size", [(256, 256), (512, 512), (640, 640), (672, 640), (832, 1216), (1248, 1824)])
def test_passes_have_the_downscales_of_the_demos_profile(size: tuple[int, int]):
    profile = find_profile(load_profiles(ROOT / "configs" / "profiles"), "demo")
    pass_ = as_served(Pass(*size, (1,)))
    expected = choose_downscales(*size, profile.pyramid_above, profile.deep_shrink_above)
    assert Downscales(pass_.pyramid, pass_.deep_shrink) == expected


def test_units_that_hear_pooled_vectors_are_alive_and_add_nothing_at_first():
    torch.manual_seed(6)
    model = DemoModel()
    captions = split_captions([f"{color} hair" for color in ("red", "blue", "green", "pink", "brown")], 1)
    model.center_pooled(captions)
    model.enable_pooled()
    pooled = model.language(captions)[1].detach()
    embedding: Any = model.unet.add_embedding
    half = embedding.linear_1.out_features // 2
    heard = embedding.linear_1(torch.cat([pooled, torch.zeros(len(pooled), 192)], dim=1))[:, :half].detach()
    assert 0.3 < float(heard.std()) < 3
    assert float((heard > 0).float().mean()) == pytest.approx(0.5, abs=0.2)
    assert torch.count_nonzero(embedding.linear_2.weight[:, :half]) == 0
