"""Against diffusers itself: the same checkpoint, called by hand, must give the same numbers."""

import math
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_inpaint import (
    StableDiffusionXLInpaintPipeline,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from demo.architecture import demo_architecture
from demo.captions import random_scene
from demo.checkpoint import build_demo
from pipelines.job import Guidance, InitImage, Job, Prompts, RgbImage
from pipelines.pipeline import Pipeline
from pipelines.plan import make_plan
from pipelines.sampling.batching import RowBatcher
from pipelines.sampling.denoise import Estimator, denoise
from pipelines.sampling.noise import ImageNoise
from pipelines.sampling.prediction import PREDICTIONS, scaled_linear
from pipelines.text.encoding import PromptEncoder
from pipelines.text.tokens import clip_tokenizer
from pipelines.weights.load import load_weights

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
    texts = PromptEncoder(demo.weights.text_encoders, torch.device("cpu")).encode(job.prompts)
    noise = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(3)).double()
    conductor = RowBatcher(demo.weights.unet, table, torch.device("cpu"), torch.float32)
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
        gzip.decompress(files("pipelines.text").joinpath("clip/merges.txt.gz").read_bytes())
        .decode()
        .split("\n")
    )
    pairs: Any = [tuple(line.split()) for line in merges]

    def tokenizer(pad):
        return CLIPTokenizer(
            vocab=clip_tokenizer().get_vocab(), merges=pairs, model_max_length=77, pad_token=pad
        )

    return tokenizer("<|endoftext|>"), tokenizer("!")


@torch.inference_mode()
def test_text_embeddings_equal_diffusers_encode_prompt(demo):
    architecture, towers = demo_architecture(), demo.weights.text_encoders
    first = CLIPTextModel(cast("Any", CLIPTextConfig)(**architecture.text_encoders[0].config)).eval()
    second = CLIPTextModelWithProjection(
        cast("Any", CLIPTextConfig)(**architecture.text_encoders[1].config)
    ).eval()
    for theirs, ours in ((first, towers[0]), (second, towers[1])):
        theirs.load_state_dict(ours.module.state_dict())
    one, two = transformers_tokenizer()
    pipe = cast("Any", StableDiffusionXLPipeline)(
        vae=None, text_encoder=first, text_encoder_2=second, tokenizer=one, tokenizer_2=two, unet=None, scheduler=None
    )  # fmt: skip
    context, negative, pooled, _ = pipe.encode_prompt(PROMPT, negative_prompt=NEGATIVE, device="cpu")
    texts = PromptEncoder(towers, torch.device("cpu")).encode(Prompts(PROMPT, NEGATIVE))
    for ours, theirs in (
        (texts.positive.context, context[0]),
        (texts.negative.context, negative[0]),
        (texts.positive.pooled, pooled[0]),
    ):
        # the same networks at the same batch shape; only the order of kernels may differ. Pooled vectors are spread by
        # a factor of about fifty once their mean is taken off, and float32's 1e-7 with them
        assert float((ours - theirs).abs().max() / theirs.abs().max()) <= 5e-6


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' scheduler
@torch.inference_mode()
def test_an_inpainting_network_is_shown_what_diffusers_shows_it(demo, demo_file, tmp_path, monkeypatch):
    """Mask and masked latents of a picture whose mask lies on the grid, the VAE's posterior at its mode in both."""
    rng = np.random.default_rng(6)
    pixels = random_scene(rng).draw(128, 192, rng)
    places = np.zeros((24, 16), np.uint8)
    places[6:20, 3:9] = 255
    nine = build_demo(tmp_path / "nine.safetensors", channels=9)
    weights: Any = load_weights(demo_file, inpainting=nine)

    ours: list[torch.Tensor] = []
    network = weights.inpainting
    monkeypatch.setattr(weights.inpainting.module, "forward", noting(ours, network.module.forward))
    source = InitImage(RgbImage(128, 192, pixels.tobytes()), 1.0, mask=places.tobytes())
    job = Job("m", Prompts("a"), 128, 192, 2, "k_euler", "native", Guidance(1.0), seeds=(3,), source=source)
    Pipeline(weights).generate_latents(job)

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    theirs: list[torch.Tensor] = []
    pipe = diffusers_inpainting(weights)
    monkeypatch.setattr(pipe.unet, "forward", noting(theirs, pipe.unet.forward))
    width, pooled = 96, 64
    mask = Image.fromarray(places.repeat(8, 0).repeat(8, 1))
    pipe(
        prompt_embeds=torch.zeros(1, 77, width), pooled_prompt_embeds=torch.zeros(1, pooled), guidance_scale=1.0,
        image=Image.fromarray(pixels), mask_image=mask, width=128, height=192, num_inference_steps=2,
        strength=1.0, output_type="latent",
    )  # fmt: skip
    assert ours[0].shape == theirs[0].shape == (1, 9, 24, 16)
    assert torch.equal(ours[0][:, 4], theirs[0][:, 4])
    # the same operations in float32
    torch.testing.assert_close(ours[0][:, 5:], theirs[0][:, 5:], atol=1e-5, rtol=0)


def noting(samples, forward):
    """A network's forward that also notes the samples it is given."""

    def noted(sample, *rest, **more):
        samples.append(sample)
        return forward(sample, *rest, **more)

    return noted


def diffusers_inpainting(weights):
    """diffusers' own inpainting pipeline around the same networks; texts come encoded."""
    settings: dict[str, Any] = dict(weights.architecture.vae)
    vae = AutoencoderKL(**settings).eval()
    vae.load_state_dict(weights.vae.module.state_dict())
    vae.register_to_config(scaling_factor=weights.architecture.latent_scale)
    settings = dict(demo_architecture(9).unet)
    unet = UNet2DConditionModel(**settings).eval()
    unet.load_state_dict(weights.inpainting.module.state_dict())
    parts: Any = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    parts["scheduler"] = EulerDiscreteScheduler(prediction_type="v_prediction")
    pipe = StableDiffusionXLInpaintPipeline(vae=vae, unet=unet, **parts)
    pipe.set_progress_bar_config(disable=True)
    encode = vae.encode
    # a picture fresh from bytes lies channels last, where torch's GroupNorm is good to 1e-4 only
    cast("Any", vae).encode = lambda picture: encode(picture.contiguous())
    return pipe
