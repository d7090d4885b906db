"""Files with all keys and shapes of the released adapters and encoders, checked from headers alone."""

from typing import Any

import pytest
import torch
from checkpoint_files import hollow
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.controlnets.controlnet_union import ControlNetUnionModel

from pipelines.adapters.control_file import detect_control
from pipelines.adapters.controlnet import plan_control
from pipelines.adapters.lora_file import read_lora
from pipelines.adapters.lora_patches import match_lora
from pipelines.adapters.residency import describe_networks
from pipelines.adapters.vibe_plan import plan_vibe
from pipelines.errors import WeightsError
from pipelines.weights.architecture import sd15, sdxl
from pipelines.weights.checkpoint import UNET_PREFIX
from pipelines.weights.key_map import map_control_keys
from pipelines.weights.model_plan import model_parts
from pipelines.weights.networks import TorchUNet, build_networks

WIDTHS = {
    "sdxl": (70, 2048, {640: 10, 1280: 60}),
    "sd15": (16, 768, {320: 5, 640: 5, 1280: 6}),
}
"""Number of cross-attentions, width of the text, and how many attentions have each width (all released UNets')."""


@pytest.fixture(scope="module")
def shapes():
    architectures = {"sdxl": sdxl(), "sd15": sd15()}
    return {name: TorchUNet(config.unet).attention_shapes for name, config in architectures.items()}


def write_encoder(path, hidden, inner, layers, projection):
    """Write the header of an image encoder as transformers saves it."""
    stored = {
        "vision_model.embeddings.class_embedding": (hidden,),
        "vision_model.embeddings.patch_embedding.weight": (hidden, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (257, hidden),
        "vision_model.embeddings.position_ids": (1, 257),
        "visual_projection.weight": (projection, hidden),
    }
    linear = {"k_proj": (hidden, hidden), "v_proj": (hidden, hidden), "q_proj": (hidden, hidden), "out_proj": (hidden, hidden)}  # fmt: skip
    for norm in ("pre_layrnorm", "post_layernorm"):
        stored |= {f"vision_model.{norm}.{part}": (hidden,) for part in ("weight", "bias")}
    for layer in range(layers):
        start = f"vision_model.encoder.layers.{layer}."
        parts = {f"self_attn.{name}": shape for name, shape in linear.items()}
        parts |= {"mlp.fc1": (inner, hidden), "mlp.fc2": (hidden, inner)}
        for name, shape in parts.items():
            stored |= {f"{start}{name}.weight": shape, f"{start}{name}.bias": shape[:1]}
        for norm in ("layer_norm1", "layer_norm2"):
            stored |= {f"{start}{norm}.{part}": (hidden,) for part in ("weight", "bias")}
    return hollow(path, stored)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    return {
        "ViT-H": write_encoder(folder / "h.safetensors", 1280, 5120, 32, 1024),
        "ViT-bigG": write_encoder(folder / "g.safetensors", 1664, 8192, 48, 1280),
    }


def write_adapter(path, family, unet_shapes, projection):
    count, width, widths = WIDTHS[family]
    assert len(unet_shapes) == count
    assert {inner: sum(shape[0] == inner for shape in unet_shapes) for inner in widths} == widths
    stored = {f"image_proj.{name}": shape for name, shape in projection.items()}
    for index, (inner, outer) in enumerate(unet_shapes):
        assert outer == width
        stored |= {f"ip_adapter.{2 * index + 1}.to_{part}_ip.weight": (inner, width) for part in "kv"}
    return hollow(path, stored)


def project(inputs, width):
    return {
        "proj.weight": (4 * width, inputs),
        "proj.bias": (4 * width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }


def resample(inputs, width, inner):
    stored = {
        "latents": (1, 16, inner), "proj_in.weight": (inner, inputs), "proj_in.bias": (inner,),
        "proj_out.weight": (width, inner), "proj_out.bias": (width,), "norm_out.weight": (width,), "norm_out.bias": (width,),
    }  # fmt: skip
    for layer in range(4):
        shapes = {
            "0.norm1.weight": (inner,), "0.norm1.bias": (inner,), "0.norm2.weight": (inner,), "0.norm2.bias": (inner,),
            "0.to_q.weight": (inner, inner), "0.to_kv.weight": (2 * inner, inner), "0.to_out.weight": (inner, inner),
            "1.0.weight": (inner,), "1.0.bias": (inner,), "1.1.weight": (4 * inner, inner), "1.3.weight": (inner, 4 * inner),
        }  # fmt: skip
        stored |= {f"layers.{layer}.{name}": shape for name, shape in shapes.items()}
    return stored


RELEASED = {
    "ip-adapter_sdxl": ("sdxl", "ViT-bigG", project(1280, 2048), ("base", 4)),
    "ip-adapter_sdxl_vit-h": ("sdxl", "ViT-H", project(1024, 2048), ("base", 4)),
    "ip-adapter-plus_sdxl_vit-h": ("sdxl", "ViT-H", resample(1280, 2048, 1280), ("plus", 16)),
    "ip-adapter_sd15": ("sd15", "ViT-H", project(1024, 768), ("base", 4)),
    "ip-adapter-plus_sd15": ("sd15", "ViT-H", resample(1280, 768, 768), ("plus", 16)),
}
"""Family, image encoder, projection, and kind and number of tokens of each released file."""


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_adapter_loads(name, tmp_path, shapes, encoders):
    family, encoder, projection, expected = RELEASED[name]
    path = write_adapter(tmp_path / f"{name}.safetensors", family, shapes[family], projection)
    plan = plan_vibe(path, encoders[encoder], shapes[family])
    assert (plan.adapter.kind, plan.adapter.count) == expected
    other = next(key for key in encoders if key != encoder)
    with pytest.raises(WeightsError, match=f"was trained with another image encoder .it needs {encoder}"):
        plan_vibe(path, encoders[other], shapes[family])
    with pytest.raises(WeightsError, match=r"the model has \d+ of width"):
        plan_vibe(path, encoders[encoder], shapes["sd15" if family == "sdxl" else "sdxl"])


SDXL_CONTROL: dict[str, Any] = {
    "block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
CONTROLS = {
    "sdxl": (ControlNetModel, SDXL_CONTROL, None),
    "sd15": (ControlNetModel, {"cross_attention_dim": 768}, None),
    "union": (ControlNetUnionModel, SDXL_CONTROL, 6),
    "union-promax": (ControlNetUnionModel, SDXL_CONTROL | {"num_control_type": 8}, 8),
}
"""diffusers' class and config of each released kind, and the number of its control types."""


@pytest.fixture(scope="module")
def control_shapes():
    shapes = {}
    for name, (build, config, _) in CONTROLS.items():
        with torch.device("meta"):
            shapes[name] = {key: tuple(tensor.shape) for key, tensor in build(**config).state_dict().items()}
    return shapes


@pytest.mark.parametrize("name", CONTROLS)
def test_a_released_controlnet_loads(name, tmp_path, control_shapes):
    family, architecture = ("sd15", sd15()) if name == "sd15" else ("sdxl", sdxl())
    path = hollow(tmp_path / f"{name}.safetensors", control_shapes[name])
    file = detect_control(path)
    assert (file.family, file.modes, file.layout) == (family, CONTROLS[name][2], "diffusers")
    plan = plan_control(file, architecture.unet)
    assert plan.weights.keys() == control_shapes[name].keys()
    elements = sum(torch.Size(shape).numel() for shape in control_shapes[name].values())
    assert plan.measure(torch.float16) == 2 * elements
    other = "sd15" if family == "sdxl" else "sdxl"
    with pytest.raises(WeightsError, match="is a ControlNet for"):
        file.check_family(other)


@pytest.mark.parametrize("name", ["sdxl", "sd15"])
def test_a_controlnet_in_the_original_layout_has_the_keys_that_diffusers_knows(
    name, tmp_path, control_shapes
):
    shapes, architecture = control_shapes[name], sd15() if name == "sd15" else sdxl()
    keys = {key: mapped.key for key, mapped in map_control_keys(shapes, architecture.unet).items()}
    converted = convert_controlnet_checkpoint(
        {keys[key]: torch.empty(shape, device="meta") for key, shape in shapes.items()},
        {"layers_per_block": 2},
    )
    # its converter leaves out what encodes SDXL's size ids, which is named as in UNets
    known = {key: shape for key, shape in shapes.items() if not key.startswith("add_embedding.")}
    assert {key: tuple(tensor.shape) for key, tensor in converted.items()} == known
    for prefix in ("control_model.", ""):
        stored = {prefix + keys[key]: shape for key, shape in shapes.items()}
        file = detect_control(hollow(tmp_path / "a.safetensors", stored))
        assert (file.family, file.layout) == (name, "original")
        weights = plan_control(file, architecture.unet).weights
        assert {key: weight.mapped.key for key, weight in weights.items()} == keys


PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
RANK = 8


def list_layers(parts):
    """Kohya's name of every layer of the UNet and the text encoders, with the shape of its weight."""
    shapes = {}
    for part in parts:
        for name, tensor in part.module.state_dict().items() if part.folder in PREFIXES else ():
            path = part.keys[name].key.removeprefix(UNET_PREFIX) if part.folder == "unet" else name
            if name.endswith(".weight") and "embedding" not in name:
                shapes[PREFIXES[part.folder] + path.removesuffix(".weight").replace(".", "_")] = tuple(
                    tensor.shape
                )
    return shapes


def shape_lora(name, shape):
    if len(shape) == 1:
        return {f"{name}.w_norm": shape, f"{name}.b_norm": shape}
    rows, columns, *kernel = shape
    ones = (1,) * len(kernel)
    return {
        f"{name}.lora_down.weight": (RANK, columns, *kernel),
        f"{name}.lora_up.weight": (rows, RANK, *ones),
        f"{name}.alpha": (),
    }


def test_a_lora_of_every_layer_of_sdxl_fits(tmp_path):
    architecture = sdxl()
    unet, _, encoders = build_networks(architecture)
    parts = model_parts(architecture, unet.module, None, [encoder.module for encoder in encoders])
    layers = list_layers(parts)
    stored = {key: size for name, shape in layers.items() for key, size in shape_lora(name, shape).items()}
    file = read_lora(hollow(tmp_path / "every.safetensors", stored))
    patches = match_lora(file, describe_networks(parts))
    names = {(patch.folder, patch.weight) for patch in patches}
    norms = sum(len(shape) == 1 for shape in layers.values())
    assert len(names) == len(patches) == len(layers) + norms
    assert (file.family, file.ranks, file.folders) == ("sdxl", (RANK,), tuple(PREFIXES))
    assert layers["lora_unet_output_blocks_0_1_transformer_blocks_9_ff_net_2"] == (1280, 5120)
