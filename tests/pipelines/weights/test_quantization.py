"""Scaled 8-bit floats are applied, and what is quantized otherwise is refused by name."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.errors import WeightsError
from pipelines.weights.header import read_header
from pipelines.weights.load import load_weights as load_typed
from pipelines.weights.model_plan import plan_model

load_weights: Any = load_typed  # tests look at the modules inside, which the protocols do not promise
UNET, VAE, CLIP_L = "model.diffusion_model.", "first_stage_model.", "conditioner.embedders.0."
KEY = f"{UNET}input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight"
STEM = KEY.removesuffix("weight")
FP8 = torch.float8_e4m3fn


@pytest.fixture(scope="module")
def stored(demo_file):
    return load_file(demo_file)


def save(path, tensors, metadata=None):
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return path


@pytest.fixture
def save_model(tmp_path, demo_file):
    """Write a file with the demo's metadata."""
    return lambda tensors: save(tmp_path / "a.safetensors", tensors, dict(read_header(demo_file).metadata))


def scale(tensors, prefix, suffix=".scale_weight", by_row=False):
    """Every matrix under a prefix in 8-bit floats, with a scale for each tensor or each row."""
    made = {}
    for key, tensor in tensors.items():
        made[key] = tensor
        if key.startswith(prefix) and tensor.ndim > 1 and key.endswith(".weight"):
            largest = tensor.float().flatten(1).abs().amax(1) if by_row else tensor.float().abs().max()
            factor = (largest / 448).clamp_min(1e-8)
            rows = factor.reshape(-1, *[1] * (tensor.ndim - 1)) if by_row else factor
            made[key], made[key.removesuffix(".weight") + suffix] = (tensor.float() / rows).to(FP8), factor
    return made


def expect(tensors, prefix):
    """What the scaled tensors stand for."""
    made = scale(tensors, prefix)
    return {
        key: made[key].float() * made[f"{key.removesuffix('weight')}scale_weight"]
        for key in made
        if made[key].dtype == FP8
    }


@pytest.mark.parametrize("suffix", [".scale_weight", ".weight_scale"])
@pytest.mark.parametrize("marker", [{}, {f"{UNET}scaled_fp8": torch.zeros(2).to(FP8)}])
def test_a_scaled_unet_is_loaded_exactly(save_model, stored, suffix, marker):
    unet = load_weights(save_model(scale(stored, UNET, suffix) | marker)).unet
    expected = expect(stored, UNET)[KEY]
    assert torch.equal(
        unet.module.state_dict()["down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"],
        expected,
    )


def test_scales_by_row_and_scales_of_inputs(save_model, stored, demo):
    made = scale(stored, VAE, ".weight_scale", by_row=True)
    made |= {f"{STEM}input_scale": torch.ones(()), f"{STEM}comfy_quant": torch.zeros(3, dtype=torch.uint8)}
    made = {key: tensor for key, tensor in made.items() if not key.startswith(STEM) or key == KEY}
    tensors, expected = (
        load_weights(save_model(made)).vae.module.state_dict(),
        demo.weights.vae.module.state_dict(),
    )
    for name, tensor in expected.items():
        rows = tensor.flatten(1).abs().amax(1) if tensor.ndim > 1 else tensor.abs().max()
        error = (tensors[name] - tensor).abs()
        assert ((error.flatten(1).amax(1) if tensor.ndim > 1 else error.max()) <= rows / 16).all(), name


def test_a_scaled_vae_and_text_encoder_may_be_replacements(tmp_path, demo_file, stored):
    vae = scale({key.removeprefix(VAE): tensor for key, tensor in stored.items() if key.startswith(VAE)}, "")
    clip = {key.removeprefix(CLIP_L): tensor for key, tensor in stored.items() if key.startswith(CLIP_L)}
    files = [save(tmp_path / "vae.safetensors", vae), save(tmp_path / "clip.safetensors", scale(clip, ""))]
    weights = load_weights(demo_file, vae=files[0], text_encoders=(files[1], demo_file))
    name = "encoder.layers.0.mlp.fc1.weight"
    tensors = {
        key.removeprefix("text_model."): value
        for key, value in weights.text_encoders[0].module.state_dict().items()
    }
    assert torch.equal(tensors[name], expect(clip, "")[f"transformer.text_model.{name}"])
    expected = expect(stored, VAE)[f"{VAE}decoder.conv_in.weight"]
    assert torch.equal(weights.vae.module.state_dict()["decoder.conv_in.weight"], expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda made: made.pop(f"{STEM}scale_weight"),
            r"to_k\.weight has no scale, though the file is marked as scaled",
        ),
        (
            lambda made: made.update({f"{STEM}scale_weight": torch.ones(3)}),
            r"of the shape \(3,\); one float or 64",
        ),
        (
            lambda made: made.update({f"{STEM}scale_weight": torch.ones(1, dtype=torch.uint8)}),
            "is U8 of the shape",
        ),
    ],
)
def test_a_scale_that_is_missing_or_does_not_fit_is_refused(save_model, stored, change, reason):
    made = scale(stored, UNET)
    change(made)
    with pytest.raises(WeightsError, match=reason):
        plan_model(save_model(made))


def test_a_marker_without_scales_is_refused_and_plain_8_bit_floats_are_not(save_model, stored):
    plain = {
        key: tensor.to(FP8) if key.startswith(UNET) and tensor.ndim > 1 else tensor
        for key, tensor in stored.items()
    }
    plan_model(save_model(plain))
    with pytest.raises(WeightsError, match="marked as scaled"):
        plan_model(save_model(plain | {f"{UNET}scaled_fp8": torch.zeros(0).to(FP8)}))
    plan_model(save_model(plain | {"first_stage_model.scaled_fp8": torch.zeros(0).to(FP8)}))


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({KEY: torch.zeros(64, 96, dtype=torch.int8)}, r"to_k\.weight holds I8, as quantized files do"),
        ({KEY: torch.zeros(64, 96, dtype=torch.int16)}, "holds I16"),
        ({KEY: torch.zeros(64, 48, dtype=torch.uint8)}, "holds U8"),
        ({KEY: torch.zeros(64, 96, dtype=torch.int64)}, "holds I64"),
        ({f"{KEY}.quant_state.bitsandbytes__nf4": torch.zeros(1)}, r"quantized by bitsandbytes \(nf4"),
        ({f"{KEY}.absmax": torch.zeros(1)}, "quantized by bitsandbytes"),
        ({f"{STEM}SCB": torch.zeros(1)}, "quantized by bitsandbytes"),
        ({f"{STEM}wscales": torch.zeros(1), f"{STEM}qweight": torch.zeros(1)}, "quantized by SVDQuant"),
        ({f"{STEM}qweight": torch.zeros(1), f"{STEM}qzeros": torch.zeros(1)}, "quantized by GPTQ or AWQ"),
        ({f"{KEY}._data": torch.zeros(1)}, "quantized by Quanto"),
        ({f"{KEY}_scale_2": torch.zeros(1)}, "quantized by blocks"),
    ],
)
def test_quantized_weights_are_refused_by_name(save_model, stored, tensors, reason):
    with pytest.raises(WeightsError, match=reason) as refused:
        plan_model(save_model(stored | tensors))
    assert "use a file in F32, F16, BF16, or in 8-bit floats" in str(refused.value)


def test_a_quantized_replacement_is_refused(tmp_path, demo_file, stored):
    vae = {key.removeprefix(VAE): tensor for key, tensor in stored.items() if key.startswith(VAE)}
    vae["decoder.conv_in.weight"] = vae["decoder.conv_in.weight"].to(torch.int8)
    with pytest.raises(WeightsError, match=r"vae\.safetensors: decoder\.conv_in\.weight holds I8"):
        plan_model(demo_file, vae=save(tmp_path / "vae.safetensors", vae))
