"""Every kind of change against LyCORIS, which trains most of these files, and against the formulas written out."""

import pytest
import torch
from lora_files import load_for_layer, write_lora
from torch import nn

BASES = {
    "linear": nn.Linear(12, 8),
    "1x1": nn.Conv2d(12, 8, 1),
    "3x3": nn.Conv2d(12, 8, 3),
}
SHAPES = {name: tuple(layer.weight.shape) for name, layer in BASES.items()}


def fill(module, seed=1):
    """Give a LyCORIS module random weights, and scales near those of the layer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(weight + 0.1 * noise if "dora" in name or "rescale" in name else 0.3 * noise)
    return module


def build_module(kind, layer, **options):
    modules = pytest.importorskip("lycoris.modules", exc_type=ImportError)
    classes = {
        "LoRA": modules.LoConModule, "LoHa": modules.LohaModule, "LoKr": modules.LokrModule, "full": modules.FullModule,
        "OFT": modules.DiagOFTModule, "BOFT": modules.ButterflyOFTModule, "IA3": modules.IA3Module,
    }  # fmt: skip
    return fill(classes[kind]("lora_unet_layer", layer, **{"lora_dim": 2, "alpha": 2, **options}))


def patch_weight(tmp_path, tensors, layer, strength=1.0):
    """The layer's weight with a file applied, all patches in turn."""
    path = write_lora(
        tmp_path / "x.safetensors", {f"lora_unet_layer.{key}": value for key, value in tensors.items()}
    )
    weights = {name: weight.detach() for name, weight in layer.named_parameters()}
    patches = load_for_layer(path, {name: tuple(weight.shape) for name, weight in weights.items()})
    changed = dict(weights)
    for patch in patches:
        name = patch.patch.weight.removeprefix("layer.")
        changed[name] = changed[name] + patch.compute(weights[name], strength)
    return changed


CASES = [
    ("LoRA", {}, "linear"), ("LoRA", {"alpha": 0.5}, "linear"), ("LoRA", {}, "1x1"), ("LoRA", {"alpha": 1}, "3x3"),
    ("LoRA", {"use_tucker": True, "alpha": 1}, "3x3"), ("LoRA", {"rs_lora": True, "alpha": 1}, "linear"),
    ("LoRA", {"weight_decompose": True, "alpha": 1}, "linear"), ("LoRA", {"weight_decompose": True}, "3x3"),
    ("LoRA", {"weight_decompose": True, "wd_on_out": False}, "linear"),
    ("LoRA", {"weight_decompose": True, "wd_on_out": False}, "3x3"),
    ("LoHa", {}, "linear"), ("LoHa", {}, "1x1"), ("LoHa", {}, "3x3"), ("LoHa", {"use_tucker": True}, "3x3"),
    ("LoHa", {"weight_decompose": True}, "linear"),
    ("LoKr", {}, "linear"), ("LoKr", {"decompose_both": True, "factor": 4, "lora_dim": 1, "alpha": 1}, "linear"),
    ("LoKr", {"full_matrix": True}, "linear"), ("LoKr", {"full_matrix": True}, "3x3"), ("LoKr", {"factor": 2, "lora_dim": 1, "alpha": 1}, "3x3"),
    ("LoKr", {"factor": 2, "lora_dim": 1, "alpha": 1, "use_tucker": True}, "3x3"),
    ("LoKr", {"weight_decompose": True}, "3x3"),
    ("full", {}, "linear"), ("full", {}, "3x3"),
    ("OFT", {}, "linear"), ("OFT", {"constraint": 0.01}, "3x3"), ("OFT", {"rescaled": True}, "linear"),
    ("BOFT", {}, "linear"), ("BOFT", {"rescaled": True, "constraint": 0.01}, "3x3"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "shape"), CASES)
def test_a_file_changes_a_weight_as_lycoris_does(tmp_path, kind, options, shape):
    layer = BASES[shape]
    module = build_module(kind, layer, **options)
    tensors = module.custom_state_dict() if hasattr(module, "custom_state_dict") else {}
    tensors = {key: value.detach().clone() for key, value in (tensors or module.state_dict()).items()}
    if kind in ("OFT", "BOFT", "IA3"):
        tensors = {
            key: value.detach().clone() for key, value in module.state_dict().items() if "." not in key
        }
    with torch.no_grad():
        if kind == "full":
            expected = layer.weight + module.weight
            tensors = {"diff": module.weight.detach().clone(), "diff_b": module.bias.detach().clone()}
        else:
            expected = module.get_merged_weight(1, tuple(layer.weight.shape))[0]
    changed = patch_weight(tmp_path, tensors, layer)["weight"]
    assert not torch.allclose(changed, layer.weight, atol=1e-3)
    torch.testing.assert_close(changed, expected, atol=1e-5, rtol=0)
