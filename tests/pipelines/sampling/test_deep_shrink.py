"""The inner part of a UNet on half the height and width."""

from dataclasses import replace

import pytest
import torch

from demo.architecture import demo_architecture
from pipelines.job import Guidance, Job, Prompts
from pipelines.pipeline import Pipeline
from pipelines.plan import make_plan
from pipelines.sampling.halving import count_downscales
from pipelines.sampling.prediction import scaled_linear
from pipelines.weights.networks import DiffusersUNet

SD15 = dict(demo_architecture().unet) | {
    "block_out_channels": [32, 64, 128, 128],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "attention_head_dim": 8,
    "transformer_layers_per_block": 1,
    "addition_embed_type": None,
    "projection_class_embeddings_input_dim": None,
    "layers_per_block": 2,
}


def network(config):
    torch.manual_seed(0)
    unet = DiffusersUNet(config)
    unet.module.to_empty(device="cpu")
    for weight in unet.module.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    return unet


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def unet(request):
    return network(demo_architecture().unet if request.param == "sdxl" else SD15)


def passed(unet, height, width, halvings=0):
    """An output, and the sizes that the features of the blocks had."""
    sizes = []
    blocks = [*unet.module.down_blocks, unet.module.mid_block, *unet.module.up_blocks]

    def note(module, given, output):
        sizes.append(tuple((output[0] if isinstance(output, tuple) else output).shape[-2:]))

    hooks = [block.register_forward_hook(note) for block in blocks]
    x = torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(1))
    added = {"text_embeds": torch.zeros(1, 64), "time_ids": torch.zeros(1, 6)}
    with torch.inference_mode():
        output = unet(x, torch.tensor([900]), torch.zeros(1, 77, 96), added, halvings)
    for hook in hooks:
        hook.remove()
    return output, sizes


@pytest.mark.parametrize(("height", "width"), [(32, 48), (20, 28), (12, 16), (8, 8)])
def test_the_output_keeps_its_size_and_the_inside_is_half_as_large(unet, height, width):
    plain, whole = passed(unet, height, width)
    shrunk, inner = passed(unet, height, width, halvings=1)
    assert shrunk.shape == plain.shape == (1, 4, height, width)
    assert shrunk.isfinite().all()
    assert torch.equal(shrunk, plain) == (inner == whole)  # the smallest cannot be halved once more
    assert inner[-1] == whole[-1] == (height, width)
    middle = len(unet.module.down_blocks)
    if min(height, width) >= 32:
        assert inner[middle] == tuple(side // 2 for side in whole[middle])


def test_it_is_halved_as_often_as_asked(unet):
    _, whole = passed(unet, 64, 96)
    output, inner = passed(unet, 64, 96, halvings=2)
    middle = len(unet.module.down_blocks)
    assert inner[middle] == tuple(side // 4 for side in whole[middle])
    assert inner[-1] == output.shape[-2:] == (64, 96)


@pytest.mark.parametrize(
    ("area", "times"),
    [(100, 0), (589_824, 0), (589_825, 1), (1024 * 1024, 1), (4 * 589_824, 1), (1_769_472 * 2, 2)],
)
def test_a_picture_is_halved_until_so_many_pixels_are_left(area, times):
    assert count_downscales(area, known=589_824) == times


def test_without_being_asked_nothing_is_shrunk(unet):
    before, _ = passed(unet, 32, 48)
    passed(unet, 32, 48, halvings=1)
    assert torch.equal(passed(unet, 32, 48)[0], before)


def test_a_run_is_shrunk_less_and_less(demo):
    job = Job("m", Prompts("a"), 128, 128, 20, "k_euler", "native", Guidance(1.0), (1,), deep_shrink=2)
    plan = make_plan(job, scaled_linear(zsnr=True))
    expected = [2] * 7 + [1] * 9 + [0] * 4
    assert [plan.deep_shrink_levels(sigma) for sigma in plan.sigmas[:-1]] == expected
    asked = []

    def noting(sample, timestep, context, added_cond_kwargs, halvings):
        asked.append(halvings)
        return demo.weights.unet(sample, timestep, context, added_cond_kwargs, halvings)

    Pipeline(replace(demo.weights, unet=noting)).generate_latents(job)
    assert asked == expected
    asked.clear()
    Pipeline(replace(demo.weights, unet=noting)).generate_latents(replace(job, smea="smea"))
    assert asked[:4] == [2, 0] * 2  # SMEA's smaller copy is small enough
