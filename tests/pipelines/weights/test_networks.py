from typing import Any

import torch
from diffusers import UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]
from transformers import CLIPTextConfig, CLIPTextModel

from demo.architecture import NARROW, WIDE, demo_architecture
from demo.checkpoint import random_weights
from pipelines.text.tokens import EOS
from pipelines.weights.architecture import TextEncoderConfig, clip_config
from pipelines.weights.networks import ClipTextEncoder, load_state

LAYERS = 3
config_of: Any = CLIPTextConfig
unet_of: Any = UNet2DConditionModel
IDS = torch.tensor([[49406, 320, 2368, EOS, *[EOS] * 73]])


def filled(projection=False, final_norm=False, pad=EOS):
    config = clip_config(width=32, layers=LAYERS, heads=2, activation="quick_gelu")
    tower = ClipTextEncoder(TextEncoderConfig(config, "clip", pad, projection, final_norm))
    weights = random_weights(tower.module, 5)
    load_state(tower.module, {name: tensor + 0.1 for name, tensor in weights.items()})
    return tower


def one_layer_shorter(tower) -> Any:
    """transformers' own encoder without the last layer: its last state is our penultimate, normalised."""
    config = clip_config(width=32, layers=LAYERS - 1, heads=2, activation="quick_gelu")
    model = CLIPTextModel(config_of(**config)).eval()
    theirs = {name.removeprefix("text_model."): t for name, t in tower.module.state_dict().items()}
    ours = {name: theirs[name.removeprefix("text_model.")] for name in model.state_dict()}
    model.load_state_dict(ours)
    return model


@torch.inference_mode()
def test_the_final_norm_is_applied_to_the_penultimate_layer_where_the_tower_says_so():
    tower = filled(final_norm=True)
    hidden, pooled = tower.encode(IDS)
    assert pooled is None
    torch.testing.assert_close(hidden, one_layer_shorter(tower)(IDS).last_hidden_state)


@torch.inference_mode()
def test_without_the_final_norm_the_penultimate_layer_is_bare():
    tower = filled(final_norm=False)
    shorter = one_layer_shorter(tower)
    core = getattr(shorter, "text_model", shorter)
    core.final_layer_norm = torch.nn.Identity()
    torch.testing.assert_close(tower.encode(IDS)[0], shorter(IDS).last_hidden_state)


@torch.inference_mode()
def test_the_pooled_vector_is_read_at_the_first_end_of_text():
    tower = filled(projection=True)
    pooled = tower.encode(IDS)[1]
    # attention is causal: what stands behind the first end of text cannot change it, even a larger id
    other = IDS.clone()
    other[:, 4:] = 0
    torch.testing.assert_close(tower.encode(other)[1], pooled)
    inner = getattr(tower.module, "text_model", tower.module)(IDS).last_hidden_state[:, 3]
    weight = tower.module.state_dict()["text_projection.weight"]
    torch.testing.assert_close(pooled, inner @ weight.T)


def test_position_ids_are_made_anew_where_files_do_not_hold_them():
    (buffer,) = [b for name, b in filled().module.named_buffers() if name.endswith("position_ids")]
    assert buffer.tolist() == [list(range(77))]


@torch.inference_mode()
def test_the_unet_returns_its_output_bare(demo):
    plain = unet_of(**demo_architecture().unet).eval()
    plain.load_state_dict(demo.weights.unet.module.state_dict())
    generator = torch.Generator().manual_seed(1)
    sample, context = (
        torch.randn(2, *shape, generator=generator) for shape in ((4, 16, 16), (77, NARROW + WIDE))
    )
    added = {"text_embeds": torch.randn(2, WIDE, generator=generator), "time_ids": torch.full((2, 6), 128.0)}
    times = torch.tensor([10, 900])
    ours = demo.weights.unet(sample, times, context, added)
    torch.testing.assert_close(ours, plain(sample, times, context, added_cond_kwargs=added).sample)


@torch.inference_mode()
def test_the_vae_encodes_the_same_picture_to_the_same_latents(demo):
    picture = torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1
    latents = demo.weights.vae.encode(picture)
    assert latents.shape == (1, 4, 8, 6)
    assert torch.equal(latents, demo.weights.vae.encode(picture))
    assert demo.weights.vae.decode(latents).shape == picture.shape
