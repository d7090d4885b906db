"""The files that a model's weights may come from, and the dtype they are loaded into."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import SD1, SDXL, hollow
from safetensors.torch import load_file, save_file

from pipelines.errors import WeightsError
from pipelines.weights.checkpoint import open_checkpoint
from pipelines.weights.embedded import read_embedded
from pipelines.weights.header import read_header
from pipelines.weights.load import choose_dtype, choose_vae_dtype
from pipelines.weights.load import load_weights as load_weights
from pipelines.weights.model_plan import model_parts, plan_parts
from pipelines.weights.networks import build_networks

load: Any = load_weights  # tests look at the modules inside, which the protocols do not promise


@pytest.fixture(scope="module")
def stored(demo_file):
    return load_file(demo_file)


def save(path, tensors, demo_file):
    save_file(tensors, path, dict(read_header(demo_file).metadata))
    return path


def assert_equal(tensors, expected):
    assert set(tensors) == set(expected)
    for key, tensor in tensors.items():
        assert torch.equal(tensor, expected[key].to(tensor.dtype)), key


def test_text_encoders_may_come_from_other_files(tmp_path, demo, demo_file, stored):
    bare = {key: tensor for key, tensor in stored.items() if not key.startswith("conditioner.")}
    path = save(tmp_path / "bare.safetensors", bare, demo_file)
    with pytest.raises(WeightsError, match="it contains no text_encoder"):
        load(path)
    folder = tmp_path / "text_encoder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file(demo.weights.text_encoders[0].module.state_dict(), folder / "model.safetensors")
    weights = load(path, text_encoders=(folder, demo_file))
    for encoder, expected in zip(weights.text_encoders, demo.weights.text_encoders, strict=True):
        assert_equal(encoder.module.state_dict(), expected.module.state_dict())
    with pytest.raises(WeightsError, match="3 text encoders are given"):
        load(path, text_encoders=(demo_file,) * 3)


def test_a_file_with_only_a_unet_loads_with_a_vae_and_text_encoders(tmp_path, stored, demo, demo_file):
    prefix = "model.diffusion_model."
    unet = {key.removeprefix(prefix): tensor for key, tensor in stored.items() if key.startswith(prefix)}
    path = save(tmp_path / "unet.safetensors", unet, demo_file)
    weights = load(path, vae=demo_file, text_encoders=(demo_file,))
    assert weights.detection.missing == ("vae", "text_encoder", "text_encoder_2")
    assert_equal(weights.unet.module.state_dict(), demo.weights.unet.module.state_dict())


def test_tensors_are_not_copied_without_a_change_of_dtype(demo_file):
    weights = load(demo_file, dtype=torch.float16, vae_dtype=torch.float16)
    states = [network.module.state_dict() for network in (weights.unet, weights.vae, *weights.text_encoders)]
    assert {tensor.dtype for state in states for tensor in state.values()} == {torch.float16}
    query = next(
        tensor for name, tensor in states[3].items() if name.endswith("layers.0.self_attn.q_proj.weight")
    )
    assert query.untyped_storage().nbytes() == 3 * query.numel() * query.element_size()
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(demo_file) in maps.read_text()


@pytest.mark.parametrize(
    ("device", "large", "stored", "expected"),
    [
        ("cpu", False, "F16", torch.float32),
        ("cpu", True, "F16", torch.bfloat16),
        ("cuda", True, "F16", torch.float16),
        ("cuda", True, "F32", torch.float16),
        ("cuda", True, "BF16", torch.bfloat16),
        ("mps", True, "BF16", torch.float16),
    ],
)
def test_the_dtype_follows_device_size_and_file(tmp_path, device, large, stored, expected):
    shapes = SDXL | ({"model.diffusion_model.out.2.weight": (2**29,)} if large else {})
    checkpoint = open_checkpoint(hollow(tmp_path / "a.safetensors", shapes))
    tensors = {key: ref._replace(dtype=stored) for key, ref in checkpoint.tensors.items()}
    assert choose_dtype(replace(checkpoint, tensors=tensors), torch.device(device)) is expected


@pytest.mark.parametrize(("dtype", "expected"), [("float32", "float32"), ("bfloat16", "bfloat16")])
def test_on_a_cpu_the_vae_is_float32_unless_the_unet_is_bfloat16(demo_file, dtype, expected):
    assert load(demo_file, dtype=getattr(torch, dtype)).vae_dtype is getattr(torch, expected)


@pytest.mark.parametrize("shapes", [SD1, SDXL])
def test_a_file_that_lacks_most_tensors_is_refused_in_one_short_line(tmp_path, shapes):
    with pytest.raises(WeightsError, match=r"missing \(") as refused:
        load(hollow(tmp_path / "a.safetensors", shapes))
    assert len(str(refused.value)) < 400


def test_a_folder_of_mixed_variants_with_leftovers_loads(tmp_path, demo, demo_file):
    modules = {
        "unet/diffusion_pytorch_model.bf16": demo.weights.unet.module,
        "vae/diffusion_pytorch_model.non_ema": demo.weights.vae.module,
        "text_encoder/model.fp16": demo.weights.text_encoders[0].module,
        "text_encoder_2/model": demo.weights.text_encoders[1].module,
    }
    extra = {"text_projection.weight": torch.zeros(4, 4), "vision_model.a.bias": torch.zeros(4)}
    for name, module in modules.items():
        (tmp_path / name).parent.mkdir()
        dtype = torch.bfloat16 if "bf16" in name else torch.float32
        tensors = {key: tensor.to(dtype).contiguous() for key, tensor in module.state_dict().items()}
        save_file((extra if "encoder/" in name else {}) | tensors, tmp_path / f"{name}.safetensors")
    architecture = read_embedded(open_checkpoint(demo_file))
    assert architecture is not None
    unet, vae, encoders = build_networks(architecture)
    parts = model_parts(architecture, unet.module, vae.module, [encoder.module for encoder in encoders])
    for planned in plan_parts(open_checkpoint(tmp_path), parts, {}):
        planned.fill(torch.device("cpu"), torch.float32)
    assert_equal(vae.module.state_dict(), demo.weights.vae.module.state_dict())
    for encoder, expected in zip(encoders, demo.weights.text_encoders, strict=True):
        assert_equal(encoder.module.state_dict(), expected.module.state_dict())


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cuda", torch.float16, torch.bfloat16),
        ("cuda", torch.float32, torch.bfloat16),
        ("mps", torch.float16, torch.float32),
        ("cpu", torch.bfloat16, torch.bfloat16),
        ("cpu", torch.float32, torch.float32),
    ],
)
def test_the_vae_never_runs_in_float16(device, dtype, expected):
    assert choose_vae_dtype(dtype, torch.device(device)) is expected
