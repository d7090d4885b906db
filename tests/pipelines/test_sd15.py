"""Stable Diffusion 1, as NovelAI's V1 and V2 are, against diffusers' and transformers' own classes by hand."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from sd15_files import small_sd15, write_small_sd15
from transformers import CLIPTextConfig, CLIPTextModel

from pipelines.job import Guidance, Job, Pass, Prompts
from pipelines.pipeline import Pipeline
from pipelines.plan import make_plan
from pipelines.text.tokens import BOS, EOS, tokenize
from pipelines.weights.load import load_weights

TEXTS = "masterpiece, best quality, 1girl, smile", "lowres, bad anatomy"
SIZE = 64, 96


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """The model from a file with UNet and VAE, joined with a text encoder from another file."""
    folder = tmp_path_factory.mktemp("nai-v1")
    file = write_small_sd15(folder / "nai-v1.safetensors", folder / "sd-v1-4.safetensors")
    return Pipeline(load_weights(file, text_encoders=(folder / "sd-v1-4.safetensors",)))


@pytest.fixture(scope="module")
def contexts(pipeline):
    """The states of the penultimate layer behind the final norm, by transformers: prompt and negative prompt."""
    config: Any = CLIPTextConfig
    model = CLIPTextModel(config(**small_sd15().text_encoders[0].config)).eval()
    model.load_state_dict(pipeline.weights.text_encoders[0].module.state_dict())
    core = getattr(model, "text_model", model)
    states = []
    for text in TEXTS:
        ids = [BOS, *tokenize(text), EOS]
        ids += [EOS] * (77 - len(ids))
        with torch.inference_mode():
            hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-2]
            states.append(core.final_layer_norm(hidden)[0])
    return states


def test_text_states_are_those_of_the_penultimate_layer_behind_the_final_norm(pipeline, contexts):
    found = pipeline._prompts.encode(Prompts(*TEXTS))
    for conditioning, expected in zip((found.positive, found.negative), contexts, strict=True):
        torch.testing.assert_close(conditioning.context, expected, atol=1e-5, rtol=1e-5)
        assert conditioning.pooled is None


# float32: one evaluation agrees to 1e-5 of the first sigma, 14.6; guidance and five steps multiply that
@pytest.mark.parametrize(("steps", "scale", "tolerance"), [(1, 1.0, 1e-5), (5, 10.0, 5e-5)])
def test_euler_steps_equal_those_of_the_unet_by_hand(pipeline, contexts, steps, scale, tolerance):
    job = Job("m", Prompts(*TEXTS), steps, "k_euler", "native", Guidance(scale), (Pass(*SIZE, seeds=(3,)),))
    (found,) = pipeline.generate_latents(job)
    config: dict[str, Any] = dict(small_sd15().unet)
    unet = UNet2DConditionModel(**config).eval()
    unet.load_state_dict(pipeline.weights.unet.module.state_dict())
    table = pipeline.table
    sigmas = make_plan(job, job.passes[0], table).sigmas
    generator = torch.Generator().manual_seed(3)
    x = torch.randn((4, SIZE[1] // 8, SIZE[0] // 8), generator=generator) * sigmas[0]
    context = torch.stack(list(contexts))
    for sigma, target in pairwise(sigmas):
        scaled = (x / (sigma**2 + 1) ** 0.5).expand(2, *x.shape)
        timesteps = torch.tensor([table.timestep(sigma)] * 2)
        with torch.inference_mode():
            cond, uncond = unet(scaled, timesteps, context).sample
        noise = uncond + scale * (cond - uncond)
        x = x + noise * (target - sigma)
    torch.testing.assert_close(found, x, atol=tolerance * sigmas[0], rtol=0)


def test_latents_have_the_family_s_scale(pipeline):
    image = torch.rand(3, 64, 64) * 2 - 1
    stored = pipeline.weights.vae.encode(image[None])[0]
    torch.testing.assert_close(pipeline._vae.encode(image), stored * 0.18215)
