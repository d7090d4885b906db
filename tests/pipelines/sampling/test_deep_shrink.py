"""The inner part of a UNet on half the height and width."""

from dataclasses import replace

import pytest
import torch
from jobs import change, make_job, plan_first
from unets import WrappedUNet
from unets import run_unet as pass_rows

from demo.architecture import demo_architecture
from pipelines.job import Guidance
from pipelines.pipeline import Pipeline
from pipelines.sampling.prediction import scaled_linear
from pipelines.weights.networks import TorchUNet

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


def make_unet(config):
    torch.manual_seed(0)
    unet = TorchUNet(config)
    unet.module.to_empty(device="cpu")
    for weight in unet.module.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    return unet


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def unet(request):
    return make_unet(demo_architecture().unet if request.param == "sdxl" else SD15)


def run_unet(unet, height, width, halvings=0):
    """Return the output and the sizes of the features of all blocks."""
    sizes = []
    blocks = [*unet.module.down_blocks, unet.module.mid_block, *unet.module.up_blocks]

    def record(module, args, output):
        sizes.append(tuple((output[-1] if isinstance(output, list) else output).shape[-2:]))

    hooks = [block.register_forward_hook(record) for block in blocks]
    x = torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(1))
    added = {"text_embeds": torch.zeros(1, 64), "time_ids": torch.zeros(1, 6)}
    with torch.inference_mode():
        inputs = x, torch.tensor([900]), torch.zeros(1, 77, 96)
        output = pass_rows(unet, *inputs, added if unet.module.add_embedding else None, halvings)
    for hook in hooks:
        hook.remove()
    return output, sizes


@pytest.mark.parametrize(("height", "width"), [(32, 48), (20, 28), (12, 16), (8, 8)])
def test_the_output_keeps_its_size_and_inner_features_have_half_the_size(unet, height, width):
    plain, full_sizes = run_unet(unet, height, width)
    shrunk, inner_sizes = run_unet(unet, height, width, halvings=1)
    assert shrunk.shape == plain.shape == (1, 4, height, width)
    assert shrunk.isfinite().all()
    # the smallest features cannot be downscaled further
    assert torch.equal(shrunk, plain) == (inner_sizes == full_sizes)
    assert inner_sizes[-1] == full_sizes[-1] == (height, width)
    middle = len(unet.module.down_blocks)
    if min(height, width) >= 32:
        assert inner_sizes[middle] == tuple(side // 2 for side in full_sizes[middle])


def test_features_are_downscaled_as_many_times_as_requested(unet):
    _, full_sizes = run_unet(unet, 64, 96)
    output, inner_sizes = run_unet(unet, 64, 96, halvings=2)
    middle = len(unet.module.down_blocks)
    assert inner_sizes[middle] == tuple(side // 4 for side in full_sizes[middle])
    assert inner_sizes[-1] == output.shape[-2:] == (64, 96)


def test_without_deep_shrink_the_output_is_unchanged(unet):
    before, _ = run_unet(unet, 32, 48)
    run_unet(unet, 32, 48, halvings=1)
    assert torch.equal(run_unet(unet, 32, 48)[0], before)


def test_a_run_uses_deep_shrink_less_from_step_to_step(demo):
    job = make_job(128, 128, steps=20, guidance=Guidance(1.0), deep_shrink=2)
    plan = plan_first(job, scaled_linear(zsnr=True))
    expected = [2] * 7 + [1] * 9 + [0] * 4
    assert [plan.deep_shrink_levels(sigma) for sigma in plan.sigmas[:-1]] == expected
    downscales = []

    def record(unet, sample, embedding, context, halvings, residuals):
        downscales.append(halvings)
        return unet(sample, embedding, context, halvings)

    recorder = WrappedUNet(demo.weights.unet, record)
    Pipeline(replace(demo.weights, unet=recorder)).generate_latents(job)
    assert downscales == expected
    downscales.clear()
    Pipeline(replace(demo.weights, unet=recorder)).generate_latents(change(job, smea="smea"))
    assert downscales[:4] == [2, 0] * 2  # SMEA's low-resolution copy is not shrunk
