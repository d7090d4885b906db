from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage]
from launches import record_launches

from demo.architecture import demo_architecture
from demo.checkpoint import random_weights
from pipelines.speed import Speed
from pipelines.vae.vae import VaeModel
from pipelines.weights.architecture import sdxl
from pipelines.weights.networks import TorchVae, load_state

vae_class: Any = AutoencoderKL
THREE_LEVELS = {
    "block_out_channels": [16, 32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "norm_num_groups": 4,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "demo": dict(demo_architecture().vae),
    "sdxl with three levels": dict(sdxl().vae) | THREE_LEVELS,
}


def build_vae(config):
    """Return a VAE with random weights."""
    vae = TorchVae(config)
    load_state(vae.module, random_weights(vae.module, 3))
    return vae


def run(vae):
    generator = torch.Generator().manual_seed(4)
    image, latents = (torch.randn(2, *shape, generator=generator) for shape in ((3, 64, 96), (4, 8, 12)))
    with torch.inference_mode():
        return vae.encode(image), vae.decode(latents)


def close(found, expected):
    # float32: other kernels for the same sums
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-5)


@pytest.fixture(params=CONFIGS)
def vae(request):
    return build_vae(CONFIGS[request.param])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_weights_and_the_output_are_those_of_diffusers_vae(config):
    vae, plain = build_vae(config), vae_class(**config).eval()
    assert list(vae.module.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(vae.module.state_dict())

    class Plain:
        def encode(self, image):
            return plain.encode(image).latent_dist.mode()

        def decode(self, latents):
            return plain.decode(latents).sample

    close(run(vae), run(Plain()))


def test_channels_last_changes_rounding_alone(vae):
    plain = run(vae)
    vae.optimize(Speed(channels_last=True))
    assert vae.module.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    close(run(vae), plain)


def test_all_layers_use_the_kernels_where_they_run(vae, monkeypatch):
    plain = run(vae)
    calls = record_launches(monkeypatch)
    vae.optimize(Speed(channels_last=True, kernels=True))
    close(run(vae), plain)
    norms = [each for each in vae.module.modules() if isinstance(each, torch.nn.GroupNorm)]
    assert len(calls) == len(norms)
    vae.optimize(Speed(channels_last=True))
    run(vae)
    assert len(calls) == len(norms)


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_num_groups": 7},
        {"block_out_channels": [16, 32]},
        {"down_block_types": ["DownEncoderBlock2D"]},
        {"up_block_types": ["UpDecoderBlock2D"] * 5},
    ],
)
def test_a_config_that_makes_no_sense_is_an_error(changes):
    with pytest.raises(ValueError, match=r"divisible|numbers"), torch.device("meta"):
        VaeModel(CONFIGS["demo"] | changes)
