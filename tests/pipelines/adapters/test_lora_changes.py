"""Every kind of change against LyCORIS, which trains most of these files, and against the formulas written out."""

from itertools import product

import pytest
import torch
from lora_files import draw_change, load_for_layer, write_lora
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


def rotate(blocks, limit=0.0):
    """The rotation matrices of OFT's blocks, one by one."""
    skews = [block - block.T for block in blocks]
    length = sum(float(skew.square().sum()) for skew in skews) ** 0.5
    shrink = limit / length if 0 < limit < length else 1.0
    identity = torch.eye(blocks.shape[-1], dtype=blocks.dtype)
    return [(identity + shrink * skew) @ torch.linalg.inv(identity - shrink * skew) for skew in skews]


def soften(rotations, strength):
    return [torch.eye(len(each), dtype=each.dtype) * (1 - strength) + strength * each for each in rotations]


def merge_oft(weight, tensors, strength):
    limit = float(tensors["alpha"]) * len(weight)
    rotation = torch.block_diag(*soften(rotate(tensors["oft_blocks"], limit), strength)).T
    return rescale(tensors, rotation @ weight.flatten(1), strength).view(weight.shape)


def merge_boft(weight, tensors, strength):
    rotated, rows, size = weight.flatten(1), len(weight), tensors["oft_blocks"].shape[-1]
    skews = tensors["oft_blocks"].flatten(0, 1)
    rotations = soften(rotate(skews), strength)
    for stage in range(len(tensors["oft_blocks"])):
        half = size // 2 * 2**stage
        order = [
            start + side * half + row
            for start in range(0, rows, 2 * half)
            for row in range(half)
            for side in (0, 1)
        ]
        mixer = torch.block_diag(*rotations[stage * rows // size : (stage + 1) * rows // size])
        mixed = torch.zeros_like(rotated)
        mixed[order] = mixer @ rotated[order]
        rotated = mixed
    return rescale(tensors, rotated, strength).view(weight.shape)


def rescale(tensors, weight, strength):
    return weight * (1 + strength * (tensors["rescale"].flatten() - 1))[:, None]


def merge_dora(weight, tensors, strength):
    """The whole way to the weight with the lengths of `dora_scale`, of which a strength goes its part."""
    up, down = tensors["lora_up.weight"].flatten(1), tensors["lora_down.weight"].flatten(1)
    moved = weight.flatten(1) + tensors["alpha"] / len(down) * up @ down
    aim = torch.stack(
        [
            row * length / row.norm()
            for row, length in zip(moved, tensors["dora_scale"].flatten(), strict=True)
        ]
    )
    return weight + strength * (aim.view(weight.shape) - weight)


def merge_ia3(weight, tensors, strength):
    factors = 1 + strength * tensors["weight"].flatten()
    axis = "oi...,i->oi..." if tensors["on_input"] else "oi...,o->oi..."
    return torch.einsum(axis, weight, factors)


MERGES = {
    "DoRA": merge_dora,
    "IA3 of outputs": merge_ia3,
    "IA3 of inputs": merge_ia3,
    "OFT": merge_oft,
    "BOFT": merge_boft,
    "difference": lambda weight, tensors, strength: weight + strength * tensors["diff"],
    "norm": lambda weight, tensors, strength: weight + strength * tensors["w_norm"],
}


@pytest.mark.parametrize("strength", [1.0, 0.5, -0.7])
@pytest.mark.parametrize(
    ("kind", "shape"), [("norm", "norm"), *product((kind for kind in MERGES if kind != "norm"), SHAPES)]
)
def test_a_file_changes_a_weight_as_a_merge_in_double_precision_does(tmp_path, kind, shape, strength):
    layer = nn.GroupNorm(2, 8) if shape == "norm" else BASES[shape]
    tensors = draw_change(kind, tuple(layer.weight.shape))
    changed = patch_weight(tmp_path, tensors, layer, strength)
    exact = {role: tensor.double() for role, tensor in tensors.items()}
    expected = MERGES[kind](layer.weight.detach().double(), exact, strength).float()
    assert not torch.allclose(changed["weight"], layer.weight, atol=1e-2)
    torch.testing.assert_close(changed["weight"], expected, atol=1e-5, rtol=0)
    shift = exact.get("diff_b", exact.get("b_norm", torch.zeros(8)))
    torch.testing.assert_close(changed["bias"], (layer.bias + strength * shift).float(), atol=1e-6, rtol=0)
