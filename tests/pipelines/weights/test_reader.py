"""Weights that are not finite are found while they are loaded."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.errors import WeightsError
from pipelines.weights.header import read_header
from pipelines.weights.load import load_weights

UNET, VAE = "model.diffusion_model.", "first_stage_model."


@pytest.mark.parametrize("dtype", [None, torch.float16])  # converted, and mapped
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "key",
    [
        f"{UNET}middle_block.0.in_layers.2.weight",
        f"{VAE}encoder.conv_in.bias",
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight",
    ],
)
def test_a_weight_that_is_not_finite_is_refused_with_file_and_tensor(tmp_path, demo_file, key, value, dtype):
    tensors = load_file(demo_file)
    tensors[key].view(-1)[-1] = value
    save_file(tensors, tmp_path / "a.safetensors", dict(read_header(demo_file).metadata))
    with pytest.raises(WeightsError) as refused:
        load_weights(tmp_path / "a.safetensors", dtype=dtype, vae_dtype=dtype)
    assert str(refused.value).startswith(f"a.safetensors: {key} contains NaN or infinity")


def test_a_weight_that_overflows_in_the_dtype_is_named_with_it(tmp_path, demo_file):
    tensors, key = load_file(demo_file), f"{UNET}out.2.bias"
    tensors[key] = torch.full((4,), 1e6)
    save_file(tensors, tmp_path / "a.safetensors", dict(read_header(demo_file).metadata))
    with pytest.raises(WeightsError, match=r"out\.2\.bias is too large for float16; set another dtype"):
        load_weights(tmp_path / "a.safetensors", dtype=torch.float16)
    load_weights(tmp_path / "a.safetensors", dtype=torch.bfloat16)


def test_nan_in_8_bit_floats_is_found_and_the_widest_values_are_not_refused(tmp_path, demo_file):
    tensors, key = load_file(demo_file), f"{UNET}out.2.weight"
    for value, dtype in (
        (448.0, torch.float8_e4m3fn),
        (57344.0, torch.float8_e5m2),
        (65504.0, torch.float16),
    ):
        tensors[key] = torch.full(tensors[key].shape, value).to(dtype)
        save_file(tensors, tmp_path / "a.safetensors", dict(read_header(demo_file).metadata))
        load_weights(tmp_path / "a.safetensors", dtype=torch.float16)
    tensors[key] = torch.full(tensors[key].shape, float("nan")).to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "a.safetensors", dict(read_header(demo_file).metadata))
    with pytest.raises(WeightsError, match="contains NaN or infinity"):
        load_weights(tmp_path / "a.safetensors")
