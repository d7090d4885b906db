"""8-bit linear layers, alone and in a UNet, and what they combine with."""

from typing import Any

import pytest
import torch
from adapter_files import build_unet
from torch import nn
from unets import close
from unets import run_random as run

from pipelines.kernels.geglu import is_geglu_fusable
from pipelines.unet import quantized_linear
from pipelines.unet.quantized_linear import QuantizedLinear, can_quantize, explain_missing_format

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
TOLERANCES = {"int8": 0.012, "float8": 0.045}
"""Relative RMS differences of a product of normally distributed numbers; 8 bits round to about 1/250 and 1/16."""
FORMATS = list(TOLERANCES)


def build_layer(name, dtype=torch.float32, bias=True):
    torch.manual_seed(1)
    layer = nn.Linear(64, 48, bias=bias, dtype=dtype).requires_grad_(False)
    return layer, QuantizedLinear(layer, name, CPU)


def measure(found, expected):
    return float((found - expected).float().square().mean().sqrt() / expected.float().square().mean().sqrt())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 64), (2, 100, 64)])
def test_a_product_is_close_and_has_the_dtype_of_its_input(name, dtype, shape):
    layer, quantized = build_layer(name, dtype)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    found, expected = quantized(x), layer(x)
    assert (found.dtype, found.shape) == (dtype, expected.shape)
    assert 0.001 < measure(found, expected) < TOLERANCES[name]
    assert is_geglu_fusable(found)  # the kernel of the gate reads it


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_does_not_depend_on_the_others(name):
    _, quantized = build_layer(name)
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(2))
    changed = torch.cat([x[:1], 1000 * x[1:]])
    assert torch.equal(quantized(x)[0], quantized(changed)[0])


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_give_the_bias_and_no_number_gives_none(name):
    layer, quantized = build_layer(name)
    x = torch.zeros(3, 64)
    x[1, 5], x[2, 7] = float("nan"), float("inf")
    found = quantized(x)
    assert torch.equal(found[0], layer.bias)
    assert found[1:].isnan().all()


@pytest.mark.parametrize("name", FORMATS)
def test_another_weight_is_stored_in_place(name):
    layer, quantized = build_layer(name)
    other = nn.Linear(64, 48).requires_grad_(False)
    other.bias = layer.bias
    places = quantized.weight.data_ptr(), quantized.scale.data_ptr()
    quantized.store(other.weight)
    x = torch.ones(2, 64)
    assert torch.equal(quantized(x), QuantizedLinear(other, name, CPU)(x))
    assert (quantized.weight.data_ptr(), quantized.scale.data_ptr()) == places


def test_sides_that_tensor_cores_cannot_take_are_not_quantized():
    sides = [(64, 48), (64, 50), (72, 64)]
    assert [can_quantize(nn.Linear(*each)) for each in sides] == [True, False, False]


def test_only_linear_layers_of_every_pass_are_quantized():
    unet = build_unet("sdxl")
    linears = {path for path, layer in unet.module.named_modules() if isinstance(layer, nn.Linear)}
    unet.quantize("int8", CPU)
    quantized = {path for path, layer in unet.module.named_modules() if isinstance(layer, QuantizedLinear)}
    ends = ("attn2.to_k", "attn2.to_v", "proj_in", "proj_out", "time_emb_proj", "linear_1", "linear_2")
    assert {path for path in linears if not path.endswith(ends)} == quantized
    assert len(quantized) == 8 * len(unet.module.cross_attentions)


@pytest.mark.parametrize("name", FORMATS)
def test_a_unet_fuses_its_quantized_projections_and_moves_them(name):
    unet = build_unet("sdxl")
    plain = run(unet)
    unet.quantize(name, CPU)
    quantized = run(unet)
    assert 0 < measure(quantized, plain) < 10 * TOLERANCES[name]
    unet.module.fuse()
    close(run(unet), quantized)
    unet.module._apply(torch.clone)  # as a move to another device does
    attention: Any = unet.module.mid_block.attentions[0].transformer_blocks[0].attn1
    for part, whole in (
        (attention.to_v.weight, attention.fused),
        (attention.to_v.scale, attention.fused_scale),
    ):
        assert part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    close(run(unet), quantized)
    attention.to_k.store(torch.zeros_like(attention.to_k.weight, dtype=torch.float32))
    assert not torch.equal(run(unet), quantized)  # what is stored in a part is in the fused matrix


@pytest.fixture
def capability(monkeypatch):
    """Pretend that there is a GPU of some compute capability, on which products succeed."""

    def describe(found):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: found)
        monkeypatch.setattr(quantized_linear, "_explain_failed_product", lambda *_: None)

    return describe


@pytest.mark.parametrize(
    ("name", "found", "runs"),
    [("int8", (7, 5), False), ("int8", (8, 0), True), ("float8", (8, 6), False), ("float8", (8, 9), True)],
)
def test_old_gpus_lack_formats(capability, name, found, runs):
    capability(found)
    missing = explain_missing_format(name, GPU)
    assert (missing is None) is runs
    if missing is not None:
        assert "and cuda:0 has {}.{}".format(*found) in missing


@pytest.mark.parametrize("name", FORMATS)
def test_other_devices_than_cpus_lack_them(name, monkeypatch):
    assert explain_missing_format(name, CPU) is None
    assert "the device is mps" in str(explain_missing_format(name, torch.device("mps")))
    monkeypatch.setattr(torch.version, "cuda", None)  # ROCm, whose devices are called cuda as well
    assert "the device is cuda" in str(explain_missing_format(name, GPU))


def test_a_product_that_a_build_lacks_is_explained(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED\nwith a stack")

    monkeypatch.setattr(torch, "_scaled_mm", fail)
    missing = explain_missing_format("float8", CPU)
    assert missing == "this build of torch cannot multiply in it on cpu: CUBLAS_STATUS_NOT_SUPPORTED"
