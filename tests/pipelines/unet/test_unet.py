"""The UNet's options, and what is computed once for a prompt; tests/pipelines/weights/test_networks.py has its output."""

from collections import Counter
from typing import Any

import pytest
import torch
from adapter_files import UNETS, build_unet
from launches import record_launches
from unets import close
from unets import run_random as run

from pipelines.unet.attention import Context
from pipelines.unet.unet import UNetModel
from pipelines.weights.architecture import sdxl


@pytest.fixture(params=UNETS)
def unet(request):
    return build_unet(request.param)


def test_fused_projections_and_channels_last_change_rounding_alone(unet):
    plain = run(unet)
    unet.module.fuse()
    close(run(unet), plain)
    unet.module.to(memory_format=torch.channels_last)
    close(run(unet), plain)


def test_a_fused_matrix_is_the_weights_themselves_after_a_change_and_after_a_move(unet):
    unet.module.fuse()
    for name, weight in unet.module.named_parameters():
        if ".attn1.to_k" in name:
            weight.mul_(1.5)  # as a LoRA does
    changed = run(unet)
    unet.module.double().float()  # moving gives the weights other addresses
    attention = unet.module.mid_block.attentions[0].transformer_blocks[0].attn1
    assert attention.fused.dtype == torch.float32
    assert attention.to_v.weight.untyped_storage().data_ptr() == attention.fused.untyped_storage().data_ptr()
    close(run(unet), changed)
    plain = build_unet("sdxl" if unet.module.add_embedding else "sd15")
    plain.module.load_state_dict(unet.module.state_dict())
    close(run(plain), changed)


def test_all_layers_use_the_kernels_where_they_run(unet, monkeypatch):
    plain = run(unet)
    unet.module.set_kernels(True)
    assert torch.equal(run(unet), plain)
    launches = record_launches(monkeypatch)
    unet.module.to(memory_format=torch.channels_last)
    close(run(unet), plain)
    norms = [each for each in unet.module.modules() if isinstance(each, torch.nn.GroupNorm)]
    assert Counter(launches) == {"group_norm": len(norms), "geglu": len(unet.module.cross_attentions)}
    unet.module.set_kernels(False)
    run(unet)
    assert launches.count("geglu") == len(unet.module.cross_attentions)


def test_a_config_that_makes_no_sense_is_an_error():
    config: dict[str, Any] = dict(sdxl().unet)
    for changes in (
        {"attention_head_dim": [5, 10, 19]},
        {"block_out_channels": [320, 640]},
        {"norm_num_groups": 7},
    ):
        with pytest.raises(ValueError, match=r"heads|argument|divisible"), torch.device("meta"):
            UNetModel(config | changes)


def make_inputs(unet):
    generator = torch.Generator().manual_seed(9)
    sample = torch.randn(2, 4, 16, 12, generator=generator)
    keys = unet.project(torch.randn(77, unet.module.shape.context, generator=generator))
    return (
        sample,
        torch.randn(2, unet.module.shape.embedding, generator=generator),
        Context(keys.expand(2, -1, -1)),
    )


@torch.inference_mode()
def test_a_shallow_pass_with_the_deep_features_of_the_same_inputs_is_the_full_pass(unet):
    inputs = make_inputs(unet)
    expected = unet(*inputs)
    prediction, deep = unet.run_full(*inputs)
    assert torch.equal(prediction, expected)
    assert deep.shape == (2, unet.module.shape.levels[1].width, 8, 6)
    assert torch.equal(unet.run_shallow(*inputs, deep), expected)
    assert not torch.allclose(unet.run_shallow(*inputs, 2 * deep), expected)
