"""Adapters of each kind against diffusers' own loader, and what is refused."""

import json
from typing import Any, cast

import numpy as np
import pytest
import torch
from adapter_files import UNETS, build_unet, make_adapter, make_encoder, save_adapter, save_encoder
from checkpoint_files import hollow
from diffusers import UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]
from safetensors.torch import load_file, save_file
from unets import run_unet

from pipelines.adapters.ip_adapter import ENCODER_KEY, detect_ip_adapter, find_encoder
from pipelines.adapters.vibe import load_vibe
from pipelines.adapters.vibe_plan import plan_vibe
from pipelines.errors import PipelineError, WeightsError
from pipelines.job import EncodedVibe, RgbImage, Vibe

CPU = torch.device("cpu")
KINDS = ("base", "plus")
SIDE = 28


def make_image(seed):
    rgb = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    return RgbImage(SIDE, SIDE, rgb.tobytes())


def normalize(image):
    values = torch.from_numpy(np.frombuffer(image.rgb, np.uint8).copy()).reshape(SIDE, SIDE, 3) / 255
    mean, std = (
        torch.tensor([0.48145466, 0.4578275, 0.40821073]),
        torch.tensor([0.26862954, 0.26130258, 0.27577711]),
    )
    return ((values - mean) / std).permute(2, 0, 1)[None]


def load(path, unet, **options):
    return load_vibe(path, None, [unet], CPU, torch.float32, **options)


def run_diffusers(family, unet, stored, kind, images, scales, inputs):
    """The output of diffusers' UNet with the adapter once for each image, rows (prompt, no prompt)."""
    config: dict[str, Any] = dict(UNETS[family])
    encoder, module = make_encoder(), cast("Any", UNet2DConditionModel(**config).eval())
    module.load_state_dict(unet.module.state_dict())
    parts = {
        part: {key.removeprefix(f"{part}."): tensor for key, tensor in stored.items() if key.startswith(f"{part}.")}
        for part in ("image_proj", "ip_adapter")
    }  # fmt: skip
    module._load_ip_adapter_weights([parts] * len(images), low_cpu_mem_usage=False)
    for processor in module.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = list(scales)
    embeddings = []
    for image in images:
        pixels = normalize(image)
        if kind == "base":
            embedding = encoder(pixel_values=pixels).image_embeds
            nothing = torch.zeros_like(embedding)
        else:
            embedding, nothing = (
                encoder(pixel_values=values, output_hidden_states=True).hidden_states[-2]
                for values in (pixels, torch.zeros_like(pixels))
            )
        embeddings.append(torch.cat([embedding, nothing])[:, None])
    sample, timestep, context, added = inputs
    added = (added or {}) | {"image_embeds": embeddings}
    return module(sample, timestep, context, added_cond_kwargs=added, return_dict=False)[0]


@pytest.mark.parametrize("family", UNETS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scales", [(1.0,), (0.6, -0.3)])
@torch.inference_mode()
def test_the_output_equals_that_of_diffusers(family, kind, scales, tmp_path):
    unet = build_unet(family)
    images = [make_image(seed) for seed in range(len(scales))]
    path = save_adapter(tmp_path / "adapter.safetensors", kind, unet)
    generator = torch.Generator().manual_seed(3)
    width = unet.attention_shapes[0][1]
    added = None
    if family == "sdxl":
        added = {"text_embeds": torch.randn(2, 24, generator=generator), "time_ids": torch.full((2, 6), 64.0)}
    sample, context = (
        torch.randn(2, 4, 8, 8, generator=generator),
        torch.randn(2, 77, width, generator=generator),
    )
    inputs = sample, torch.tensor([400, 400]), context, added
    vibes = [Vibe(image, scale) for image, scale in zip(images, scales, strict=True)]
    ours = run_unet(unet, *inputs, vibes=load(path, unet).prepare(vibes))
    plain = run_unet(unet, *inputs)
    expected = run_diffusers(family, unet, make_adapter(kind, unet), kind, images, scales, inputs)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    assert float((plain - expected).abs().max()) > 0.01


@torch.inference_mode()
def test_the_encoder_may_be_a_file_of_its_own(tmp_path):
    unet = build_unet("sdxl")
    alone = save_adapter(tmp_path / "alone.safetensors", "plus", unet, with_encoder=False)
    expected = load(save_adapter(tmp_path / "both.safetensors", "plus", unet), unet).encode(make_image(1))
    file = save_encoder(tmp_path / "encoder.safetensors")
    encoder = load_vibe(alone, file, [unet], CPU, torch.float32)
    assert encoder.encode(make_image(1)) == expected


def test_released_encoders_are_known_by_their_shapes(tmp_path):
    for name, (hidden, inner, layers, projection) in {
        "h": (1280, 5120, 32, 1024),
        "g": (1664, 8192, 48, 1280),
    }.items():
        shapes = {
            "vision_model.embeddings.class_embedding": (hidden,),
            "vision_model.embeddings.patch_embedding.weight": (hidden, 3, 14, 14),
            "vision_model.embeddings.position_embedding.weight": (257, hidden),
            "visual_projection.weight": (projection, hidden),
        } | {f"vision_model.encoder.layers.{k}.mlp.fc1.weight": (inner, 1) for k in range(layers)}
        folder = tmp_path / name  # as released
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        file = hollow(tmp_path / f"{name}.safetensors", shapes)
        hollow(folder / "model.safetensors", shapes)
        adapter = hollow(tmp_path / f"{name}-adapter.safetensors", {
            "image_proj.proj.weight": (4 * 2048, projection), "ip_adapter.1.to_k_ip.weight": (640, 2048),
        })  # fmt: skip
        config, same = (find_encoder(detect_ip_adapter(adapter), path)[1] for path in (file, folder))
        assert config == same == {
            "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 16,
            "image_size": 224, "patch_size": 14, "projection_dim": projection, "hidden_act": "gelu",
        }  # fmt: skip


def refuse(path, unet, encoder=None):
    with pytest.raises(WeightsError) as caught:
        plan_vibe(path, encoder, unet.attention_shapes)
    return str(caught.value)


def test_what_cannot_be_used_is_refused_by_the_reason(tmp_path):
    unet, other = build_unet("sdxl"), build_unet("sd15")
    path = save_adapter(tmp_path / "a.safetensors", "plus", unet)
    counts = [len(network.attention_shapes) for network in (other, unet)]
    assert refuse(save_adapter(tmp_path / "sd15.safetensors", "base", other), unet).endswith(
        f"an adapter for {counts[0]} cross-attentions of width 40; the model has {counts[1]} of width 48"
    )
    stored = load_file(path)
    cases = {
        "not an IP-Adapter": {"lora_unet_a.weight": torch.zeros(2)},
        "full-face IP-Adapter": stored | {"image_proj.proj.3.weight": torch.zeros(2)},
        "FaceID IP-Adapter": stored | {"image_proj.proj.0.weight": torch.zeros(2, 2)},
        "1 missing (norm_out.bias)": {
            key: value for key, value in stored.items() if key != "image_proj.norm_out.bias"
        },
        "1 unexpected (5.to_q_lora.weight)": stored | {"ip_adapter.5.to_q_lora.weight": torch.zeros(2)},
        "has the shape (3,), not (48,)": stored | {"image_proj.norm_out.bias": torch.zeros(3)},
    }
    for reason, tensors in cases.items():
        file = tmp_path / "case.safetensors"
        save_file(tensors, file, {ENCODER_KEY: json.dumps({"num_attention_heads": 4})})
        assert reason in refuse(file, unet), reason


def test_an_adapter_without_its_encoder_says_which_it_needs(tmp_path):
    adapter = hollow(tmp_path / "sdxl_vit-h.safetensors", {
        "image_proj.proj.weight": (4 * 2048, 1024), "ip_adapter.1.to_k_ip.weight": (640, 2048),
    })  # fmt: skip
    with pytest.raises(WeightsError, match=r"image_encoder.*ViT-H, width 1024"):
        find_encoder(detect_ip_adapter(adapter), None)
    unet = build_unet("sdxl")
    small = save_adapter(tmp_path / "small.safetensors", "base", unet, with_encoder=False)
    with pytest.raises(WeightsError, match=r"was trained with another image encoder.*ViT-H"):
        find_encoder(detect_ip_adapter(adapter), save_encoder(tmp_path / "encoder.safetensors"))
    assert "name its file as `image_encoder`" in refuse(small, unet)


def test_another_file_is_no_image_encoder(tmp_path):
    unet = build_unet("sdxl")
    adapter = save_adapter(tmp_path / "a.safetensors", "base", unet, with_encoder=False)
    assert "not an image encoder" in refuse(adapter, unet, adapter)


def test_a_pickle_is_refused(tmp_path):
    (tmp_path / "ip-adapter.bin").write_bytes(b"PK")
    assert "pickle" in refuse(tmp_path / "ip-adapter.bin", build_unet("sdxl"))


@torch.inference_mode()
def test_an_encoded_image_gives_the_tokens_of_the_image(tmp_path):
    unet = build_unet("sdxl")
    encoder = load(save_adapter(tmp_path / "a.safetensors", "plus", unet), unet, strength=0.5)
    for information in (1.0, 0.3):
        encoded = encoder.encode(make_image(2), information)
        assert (encoded.count, encoded.width, encoded.information_extracted) == (6, 48, information)
        vibes = Vibe(make_image(2), 0.8, information), Vibe(encoded, 0.8)
        (drawn, again), (nothing, _) = encoder.prepare(vibes)
        assert torch.equal(drawn.tokens, again.tokens)
        assert drawn.scale == again.scale == nothing.scale == pytest.approx(0.4)
    whole, part = (encoder.encode(make_image(2), share) for share in (1.0, 0.3))
    assert whole.values != part.values


@torch.inference_mode()
def test_an_image_of_strength_0_is_left_out(tmp_path):
    unet = build_unet("sdxl")
    encoder = load(save_adapter(tmp_path / "a.safetensors", "base", unet), unet)
    assert encoder.prepare([Vibe(make_image(1), 0.0)]) == ((), ())


@torch.inference_mode()
def test_an_image_is_encoded_once(tmp_path, monkeypatch):
    unet = build_unet("sdxl")
    encoder, calls = load(save_adapter(tmp_path / "a.safetensors", "base", unet), unet), []
    encode = encoder._encode
    monkeypatch.setattr(encoder, "_encode", lambda pixels: calls.append(1) or encode(pixels))
    for image, information in ((1, 1.0), (1, 1.0), (2, 1.0), (1, 0.5), (1, 1.0)):
        encoder.encode(make_image(image), information)
    assert len(calls) == 3


@torch.inference_mode()
def test_tokens_of_another_adapter_are_refused(tmp_path):
    unet = build_unet("sdxl")
    encoder = load(save_adapter(tmp_path / "a.safetensors", "base", unet), unet)
    with pytest.raises(PipelineError, match="another image adapter"):
        encoder.prepare([Vibe(EncodedVibe(2, 48, bytes(2 * 48 * 4)))])
