from typing import Any

import torch
from diffusers import UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]
from transformers import CLIPTextConfig, CLIPTextModel
from unets import run_unet

from demo.architecture import NARROW, WIDE, demo_architecture
from demo.checkpoint import random_weights
from pipelines.text.tokens import EOS
from pipelines.weights.architecture import TextEncoderConfig, clip_config
from pipelines.weights.networks import ClipTextEncoder, load_state

LAYERS = 3
clip_text_config: Any = CLIPTextConfig
unet_class: Any = UNet2DConditionModel
IDS = torch.tensor([[49406, 320, 2368, EOS, *[EOS] * 73]])


def build_encoder(projection=False, final_norm=False, pad=EOS):
    config = clip_config(width=32, layers=LAYERS, heads=2, activation="quick_gelu")
    encoder = ClipTextEncoder(TextEncoderConfig(config, "clip", pad, projection, final_norm))
    weights = random_weights(encoder.module, 5)
    load_state(encoder.module, {name: tensor + 0.1 for name, tensor in weights.items()})
    return encoder


def remove_last_layer(encoder) -> Any:
    """Build transformers' model without the last layer: its last state is the penultimate one, normalized."""
    config = clip_config(width=32, layers=LAYERS - 1, heads=2, activation="quick_gelu")
    model = CLIPTextModel(clip_text_config(**config)).eval()
    weights = {
        name.removeprefix("text_model."): tensor for name, tensor in encoder.module.state_dict().items()
    }
    model.load_state_dict({name: weights[name.removeprefix("text_model.")] for name in model.state_dict()})
    return model


@torch.inference_mode()
def test_the_final_norm_is_applied_to_the_penultimate_layer_if_configured():
    encoder = build_encoder(final_norm=True)
    hidden, pooled = encoder.encode(IDS)
    assert pooled is None
    torch.testing.assert_close(hidden, remove_last_layer(encoder)(IDS).last_hidden_state)


@torch.inference_mode()
def test_without_the_final_norm_the_penultimate_layer_is_not_normalized():
    encoder = build_encoder(final_norm=False)
    shorter = remove_last_layer(encoder)
    core = getattr(shorter, "text_model", shorter)
    core.final_layer_norm = torch.nn.Identity()
    torch.testing.assert_close(encoder.encode(IDS)[0], shorter(IDS).last_hidden_state)


@torch.inference_mode()
def test_the_pooled_vector_is_read_at_the_first_end_of_text():
    encoder = build_encoder(projection=True)
    pooled = encoder.encode(IDS)[1]
    # attention is causal: ids after the first end of text cannot change it, even a larger id
    other = IDS.clone()
    other[:, 4:] = 0
    torch.testing.assert_close(encoder.encode(other)[1], pooled)
    inner = getattr(encoder.module, "text_model", encoder.module)(IDS).last_hidden_state[:, 3]
    weight = encoder.module.state_dict()["text_projection.weight"]
    torch.testing.assert_close(pooled, inner @ weight.T)


def test_position_ids_are_created_if_files_do_not_contain_them():
    (buffer,) = [
        buffer for name, buffer in build_encoder().module.named_buffers() if name.endswith("position_ids")
    ]
    assert buffer.tolist() == [list(range(77))]


@torch.inference_mode()
def test_the_unet_returns_the_output_of_diffusers_unet(demo):
    plain = unet_class(**demo_architecture().unet).eval()
    plain.load_state_dict(demo.weights.unet.module.state_dict())
    generator = torch.Generator().manual_seed(1)
    sample, context = (
        torch.randn(2, *shape, generator=generator) for shape in ((4, 16, 16), (77, NARROW + WIDE))
    )
    added = {"text_embeds": torch.randn(2, WIDE, generator=generator), "time_ids": torch.full((2, 6), 128.0)}
    times = torch.tensor([10, 900])
    output = run_unet(demo.weights.unet, sample, times, context, added)
    torch.testing.assert_close(output, plain(sample, times, context, added_cond_kwargs=added).sample)


@torch.inference_mode()
def test_the_vae_encodes_the_same_image_to_the_same_latents(demo):
    image = torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1
    latents = demo.weights.vae.encode(image)
    assert latents.shape == (1, 4, 8, 6)
    assert torch.equal(latents, demo.weights.vae.encode(image))
    assert demo.weights.vae.decode(latents).shape == image.shape
