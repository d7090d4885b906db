"""Against diffusers itself: the same checkpoint, called by hand, must give the same numbers."""

import math
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from demo.architecture import demo_architecture
from pipelines.conditioning import TextEncoding
from pipelines.conductor import Conductor
from pipelines.denoise import Estimator, denoise
from pipelines.job import Guidance, Job, Prompts
from pipelines.noise import ImageNoise
from pipelines.plan import make_plan
from pipelines.prediction import PREDICTIONS, scaled_linear
from pipelines.tokens import vocabulary

PROMPT, NEGATIVE = "1girl, solo, long hair, smile, best quality", "lowres, bad anatomy"
SIZE = 128


@pytest.fixture(scope="module")
def plain_unet(demo):
    """diffusers' own network, made by diffusers, with the same weights."""
    settings: dict[str, Any] = dict(demo_architecture().unet)
    unet = UNet2DConditionModel(**settings).eval()
    unet.load_state_dict(demo.weights.unet.module.state_dict())
    return unet


def reference(unet, texts, sigmas, table, kind, noise, scale):
    """A plain Euler loop in float64 around a float32 network, the first step of a zero-SNR ladder exact."""
    ids = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]] * 2, dtype=torch.float32)
    context = torch.stack([texts.negative.context, texts.positive.context])
    pooled = torch.stack([texts.negative.pooled, texts.positive.pooled])
    x = noise if math.isinf(sigmas[0]) else noise * sigmas[0]
    for sigma, target in pairwise(sigmas):
        scaled = x if math.isinf(sigma) else x / math.sqrt(sigma**2 + 1)
        t = 999 if math.isinf(sigma) else nearest(table, sigma)
        output = unet(
            torch.stack([scaled, scaled]).float(),
            torch.tensor([t, t]),
            context,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": ids},
        ).sample.double()
        guided = output[0] + scale * (output[1] - output[0])
        if math.isinf(sigma):
            x = -guided + target * noise
            continue
        if kind == "v":
            x0 = x / (sigma**2 + 1) - guided * sigma / math.sqrt(sigma**2 + 1)
        else:
            x0 = x - sigma * guided
        x = x + (x - x0) / sigma * (target - sigma)
    return x


def nearest(table, sigma):
    finite = torch.tensor([value for value in table.sigmas if math.isfinite(value)], dtype=torch.float64)
    return int((finite.log() - math.log(sigma)).abs().argmin())


@pytest.mark.parametrize("kind", ["eps", "v"])
@torch.inference_mode()
def test_latents_equal_a_loop_around_diffusers_own_unet(demo, plain_unet, kind):
    table = scaled_linear(zsnr=kind == "v")
    job = Job("m", Prompts(PROMPT, NEGATIVE), SIZE, SIZE, 10, "k_euler", "native", Guidance(5.0), seeds=(3,))
    plan = make_plan(job, table)
    texts = TextEncoding(demo.weights.towers, torch.device("cpu")).texts(job.prompts)
    noise = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(3)).double()
    conductor = Conductor(demo.weights.unet, table, torch.device("cpu"), torch.float32)
    ids = (SIZE, SIZE, 0, 0, SIZE, SIZE)
    start = noise if kind == "v" else noise * plan.sigmas[0]
    quiet = ImageNoise(noise, None, lambda sigma, target: noise)
    (ours,) = conductor.run(
        [denoise(Estimator(plan, texts, ids, PREDICTIONS[kind]), start, quiet)], lambda *_: None
    )
    theirs = reference(plain_unet, texts, plan.sigmas, table, kind, noise, 5.0)
    # float32 networks on the same rows in another order: rounding only, ten steps of it
    assert float((ours - theirs).abs().max() / theirs.abs().max()) <= 1e-5


def transformers_tokenizer():
    """transformers' tokenizer over the same vocabulary."""
    import gzip
    from importlib.resources import files

    merges = (
        gzip.decompress(files("pipelines").joinpath("clip/merges.txt.gz").read_bytes()).decode().split("\n")
    )
    pairs: Any = [tuple(line.split()) for line in merges]

    def tokenizer(pad):
        return CLIPTokenizer(vocab=vocabulary().get_vocab(), merges=pairs, model_max_length=77, pad_token=pad)

    return tokenizer("<|endoftext|>"), tokenizer("!")


@torch.inference_mode()
def test_text_embeddings_equal_diffusers_encode_prompt(demo):
    architecture, towers = demo_architecture(), demo.weights.towers
    first = CLIPTextModel(cast("Any", CLIPTextConfig)(**architecture.towers[0].config)).eval()
    second = CLIPTextModelWithProjection(cast("Any", CLIPTextConfig)(**architecture.towers[1].config)).eval()
    for theirs, ours in ((first, towers[0]), (second, towers[1])):
        theirs.load_state_dict(ours.module.state_dict())
    one, two = transformers_tokenizer()
    pipe = cast("Any", StableDiffusionXLPipeline)(
        vae=None, text_encoder=first, text_encoder_2=second, tokenizer=one, tokenizer_2=two, unet=None, scheduler=None
    )  # fmt: skip
    context, negative, pooled, _ = pipe.encode_prompt(PROMPT, negative_prompt=NEGATIVE, device="cpu")
    texts = TextEncoding(towers, torch.device("cpu")).texts(Prompts(PROMPT, NEGATIVE))
    for ours, theirs in (
        (texts.positive.context, context[0]),
        (texts.negative.context, negative[0]),
        (texts.positive.pooled, pooled[0]),
    ):
        # the same networks at the same batch shape; only the order of kernels may differ
        assert float((ours - theirs).abs().max() / theirs.abs().max()) <= 1e-6
