import pytest
import torch

from demo.draughtsman import SPREAD, Draughtsman, opened, save
from demo.language import chunked
from demo.train_vae import new_vae

CAPTIONS = chunked(["1girl, red hair, parliament", ""], 1)
IDS = torch.tensor([[64.0, 48, 0, 0, 64, 48]]).expand(2, -1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An untrained model and its file."""
    torch.manual_seed(1)
    model, file = Draughtsman().eval(), tmp_path_factory.mktemp("model") / "model.safetensors"
    save(model, new_vae(), file)
    return model, file


def velocity(model, sample):
    with torch.inference_mode():
        return model(sample, torch.tensor([999, 100]), CAPTIONS, IDS)


def sample(channels):
    return torch.randn(2, channels, 8, 6, generator=torch.Generator().manual_seed(channels))


def test_a_model_comes_back_from_its_file(saved):
    model, file = saved
    again, _ = opened(file)
    # the file is in half precision
    torch.testing.assert_close(
        velocity(again.eval(), sample(4)), velocity(model, sample(4)), atol=4e-3, rtol=0
    )
    assert not torch.equal(velocity(model, sample(4))[0], velocity(model, sample(4))[1])


def test_an_inpainting_unet_begins_without_regard_for_what_is_around(saved):
    model, _ = opened(saved[1])
    wide, _ = opened(saved[1], channels=9)
    noisy = sample(9)
    torch.testing.assert_close(velocity(wide.eval(), noisy), velocity(model.eval(), noisy[:, :4]))


def test_recentring_spreads_pooled_vectors_and_changes_nothing_drawn():
    torch.manual_seed(2)
    model = Draughtsman().eval()
    before = velocity(model, sample(4))
    model.recentre(CAPTIONS)
    # float32 through factors of about a hundred
    torch.testing.assert_close(velocity(model, sample(4)), before, atol=1e-4, rtol=0)
    pooled = model.language(CAPTIONS)[1]
    assert float((pooled - pooled.mean(dim=0)).norm(dim=1).mean().detach()) == pytest.approx(SPREAD, rel=1e-3)
