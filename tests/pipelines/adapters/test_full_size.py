"""Files with all keys and shapes of the released adapters and encoders, checked from headers alone."""

import pytest
from checkpoint_files import hollow

from pipelines.adapters.vibe_plan import plan_vibe
from pipelines.errors import WeightsError
from pipelines.weights.architecture import sd15, sdxl
from pipelines.weights.networks import DiffusersUNet

WIDTHS = {
    "sdxl": (70, 2048, {640: 10, 1280: 60}),
    "sd15": (16, 768, {320: 5, 640: 5, 1280: 6}),
}
"""Number of cross-attentions, width of the text, and how many attentions have each width (all released UNets')."""


@pytest.fixture(scope="module")
def shapes():
    architectures = {"sdxl": sdxl(), "sd15": sd15()}
    return {name: DiffusersUNet(config.unet).image_attention.shapes for name, config in architectures.items()}


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
