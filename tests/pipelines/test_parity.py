"""Comparison with diffusers: the same checkpoint, run by its own classes, must give the same numbers."""

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
from drive import run_rows
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from demo.architecture import demo_architecture
from demo.captions import random_scene
from demo.checkpoint import build_demo
from pipelines.job import Guidance, InitImage, Job, Pass, Prompts, RgbImage
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
def diffusers_unet(demo):
    """diffusers' own UNet with the demo's weights."""
    config: dict[str, Any] = dict(demo_architecture().unet)
    unet = UNet2DConditionModel(**config).eval()
    unet.load_state_dict(demo.weights.unet.module.state_dict())
    return unet


def run_reference(unet, embeddings, sigmas, table, prediction, noise, scale):
    """Run a plain Euler loop in float64 with a float32 network; a first step at infinite sigma is exact."""
    ids = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]] * 2, dtype=torch.float32)
    context = torch.stack([embeddings.negative.context, embeddings.positive.context])
    pooled = torch.stack([embeddings.negative.pooled, embeddings.positive.pooled])
    x = noise if math.isinf(sigmas[0]) else noise * sigmas[0]
    for sigma, target in pairwise(sigmas):
        scaled = x if math.isinf(sigma) else x / math.sqrt(sigma**2 + 1)
        t = 999 if math.isinf(sigma) else find_nearest_timestep(table, sigma)
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
        if prediction == "v":
            x0 = x / (sigma**2 + 1) - guided * sigma / math.sqrt(sigma**2 + 1)
        else:
            x0 = x - sigma * guided
        x = x + (x - x0) / sigma * (target - sigma)
    return x


def find_nearest_timestep(table, sigma):
    finite = torch.tensor([value for value in table.sigmas if math.isfinite(value)], dtype=torch.float64)
    return int((finite.log() - math.log(sigma)).abs().argmin())


@pytest.mark.parametrize("prediction", ["eps", "v"])
@torch.inference_mode()
def test_latents_equal_those_of_an_euler_loop_with_diffusers_unet(demo, diffusers_unet, prediction):
    table = scaled_linear(zsnr=prediction == "v")
    pass_ = Pass(SIZE, SIZE, seeds=(3,))
    job = Job("m", Prompts(PROMPT, NEGATIVE), 10, "k_euler", "native", Guidance(5.0), (pass_,))
    plan = make_plan(job, pass_, table)
    embeddings = PromptEncoder(demo.weights.text_encoders, torch.device("cpu")).encode(job.prompts)
    noise = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(3)).double()
    batcher = RowBatcher(demo.weights.unet, table, torch.device("cpu"), torch.float32)
    ids = (SIZE, SIZE, 0, 0, SIZE, SIZE)
    start = noise if prediction == "v" else noise * plan.sigmas[0]
    image_noise = ImageNoise(noise, None, lambda sigma, target: noise)
    estimator = Estimator(plan, embeddings, ids, PREDICTIONS[prediction])
    latents = run_rows(batcher, denoise(estimator, start, image_noise))
    expected = run_reference(diffusers_unet, embeddings, plan.sigmas, table, prediction, noise, 5.0)
    # float32 networks on the same rows in another order: ten steps of rounding errors
    assert float((latents - expected).abs().max() / expected.abs().max()) <= 1e-5


def build_tokenizers():
    """transformers' tokenizers with the same vocabulary, padded as for CLIP-L and OpenCLIP bigG."""
    import gzip
    from importlib.resources import files

    merges = (
        gzip.decompress(files("pipelines.text").joinpath("clip/merges.txt.gz").read_bytes())
        .decode()
        .split("\n")
    )
    pairs: Any = [tuple(line.split()) for line in merges]

    def build(pad):
        return CLIPTokenizer(
            vocab=clip_tokenizer().get_vocab(), merges=pairs, model_max_length=77, pad_token=pad
        )

    return build("<|endoftext|>"), build("!")


@torch.inference_mode()
def test_prompt_embeddings_equal_diffusers_encode_prompt(demo):
    architecture, encoders = demo_architecture(), demo.weights.text_encoders
    first = CLIPTextModel(cast("Any", CLIPTextConfig)(**architecture.text_encoders[0].config)).eval()
    second = CLIPTextModelWithProjection(
        cast("Any", CLIPTextConfig)(**architecture.text_encoders[1].config)
    ).eval()
    for module, encoder in ((first, encoders[0]), (second, encoders[1])):
        module.load_state_dict(encoder.module.state_dict())
    tokenizer, tokenizer_2 = build_tokenizers()
    pipe = cast("Any", StableDiffusionXLPipeline)(
        vae=None, text_encoder=first, text_encoder_2=second, tokenizer=tokenizer, tokenizer_2=tokenizer_2,
        unet=None, scheduler=None,
    )  # fmt: skip
    context, negative, pooled, _ = pipe.encode_prompt(PROMPT, negative_prompt=NEGATIVE, device="cpu")
    embeddings = PromptEncoder(encoders, torch.device("cpu")).encode(Prompts(PROMPT, NEGATIVE))
    for tensor, expected in (
        (embeddings.positive.context, context[0]),
        (embeddings.negative.context, negative[0]),
        (embeddings.positive.pooled, pooled[0]),
    ):
        # the same networks at the same batch shape, so only the order of kernels may differ. Subtracting the mean of the
        # pooled vectors scales what is left by about fifty, and with it float32's error of 1e-7
        assert float((tensor - expected).abs().max() / expected.abs().max()) <= 5e-6


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' scheduler
@torch.inference_mode()
def test_the_inpainting_unet_gets_the_same_input_as_from_diffusers(demo, demo_file, tmp_path, monkeypatch):
    """Mask and masked latents, with a mask aligned to the latents and the mode of the VAE's posterior in both."""
    rng = np.random.default_rng(6)
    pixels = random_scene(rng).draw(128, 192, rng)
    mask = np.zeros((24, 16), np.uint8)
    mask[6:20, 3:9] = 255
    inpainting = build_demo(tmp_path / "inpainting.safetensors", channels=9)
    weights: Any = load_weights(demo_file, inpainting=inpainting)

    samples: list[torch.Tensor] = []
    module = weights.inpainting.module
    monkeypatch.setattr(module, "forward", record_samples(samples, module.forward))
    init = InitImage(RgbImage(128, 192, pixels.tobytes()), mask=mask.tobytes())
    passes = (Pass(128, 192, seeds=(3,), init=init),)
    job = Job("m", Prompts("a"), 2, "k_euler", "native", Guidance(1.0), passes)
    Pipeline(weights).generate_latents(job)

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    expected: list[torch.Tensor] = []
    pipe = build_diffusers_inpainting(weights)
    monkeypatch.setattr(pipe.unet, "forward", record_samples(expected, pipe.unet.forward))
    width, pooled = 96, 64
    mask_image = Image.fromarray(mask.repeat(8, 0).repeat(8, 1))
    pipe(
        prompt_embeds=torch.zeros(1, 77, width), pooled_prompt_embeds=torch.zeros(1, pooled), guidance_scale=1.0,
        image=Image.fromarray(pixels), mask_image=mask_image, width=128, height=192, num_inference_steps=2,
        strength=1.0, output_type="latent",
    )  # fmt: skip
    assert samples[0].shape == expected[0].shape == (1, 9, 24, 16)
    assert torch.equal(samples[0][:, 4], expected[0][:, 4])
    # the same operations in float32
    torch.testing.assert_close(samples[0][:, 5:], expected[0][:, 5:], atol=1e-5, rtol=0)


def record_samples(samples, forward):
    """Wrap a network's `forward` so that it also appends its first argument to `samples`."""

    def wrapper(sample, *args, **kwargs):
        samples.append(sample)
        return forward(sample, *args, **kwargs)

    return wrapper


def build_diffusers_inpainting(weights):
    """Build diffusers' inpainting pipeline from the same weights, without text encoders."""
    config: dict[str, Any] = dict(weights.architecture.vae)
    vae = AutoencoderKL(**config).eval()
    vae.load_state_dict(weights.vae.module.state_dict())
    vae.register_to_config(scaling_factor=weights.architecture.latent_scale)
    config = dict(demo_architecture(9).unet)
    unet = UNet2DConditionModel(**config).eval()
    unet.load_state_dict(weights.inpainting.module.state_dict())
    parts: Any = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    parts["scheduler"] = EulerDiscreteScheduler(prediction_type="v_prediction")
    pipe = StableDiffusionXLInpaintPipeline(vae=vae, unet=unet, **parts)
    pipe.set_progress_bar_config(disable=True)
    encode = vae.encode
    # diffusers passes images in channels-last memory, where torch's GroupNorm is accurate only to 1e-4
    cast("Any", vae).encode = lambda image: encode(image.contiguous())
    return pipe
