"""Decide a network's prediction type from its outputs, where nothing in its file says it.

At the highest timestep the input is noise alone. A network that predicts noise returns it; one that predicts velocity
returns an estimate of the image instead. In the middle, outputs contain noise and image in shares that depend on the
prediction type: 1 and 0 for noise (eps), alpha and -sigma for velocity, 0 and 1 for x0, 1 and -1 for rectified flow.
benchmarks/probe.py measures all of them.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from pipelines.errors import WeightsError
from pipelines.image.inpainting import build_inpaint_channels
from pipelines.image.vae import VaeCodec
from pipelines.job import Prompts
from pipelines.sampling.batching import RowBatcher
from pipelines.sampling.denoise import Row
from pipelines.sampling.prediction import scaled_linear
from pipelines.text.encoding import PromptEncoder
from pipelines.weights.claim import OVERRIDE
from pipelines.weights.detect import ASSUMED, Detection
from pipelines.weights.families import FAMILIES
from pipelines.weights.load import Weights
from pipelines.weights.networks import UNet

SIDE = 64
"""Side of the probe's latents, for images of 512 x 512 pixels; the cosine of two unrelated ones is about 0.01."""
MIDDLE_TIMESTEP = 500
"""A timestep at which alpha is 0.5 and sigma 0.9."""
SHARE_LIMITS = (0.3, 0.5, 0.75)
"""Image share below which the output is noise, above which it is an image, and the largest noise share of velocity."""
COSINE_LIMITS = (0.5, 0.9)
"""Cosine at the highest timestep below which the output is an image, and above which it is the noise."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a network's outputs consist of.

    Attributes:
        cosine: between output and noise at the highest timestep.
        noise, image: shares of the output in the middle.
    """

    cosine: float
    noise: float
    image: float

    def __str__(self) -> str:
        middle = f"its output at timestep {MIDDLE_TIMESTEP} is {self.noise:.2f} noise {self.image:+.2f} image"
        return f"cosine with the noise at timestep 999 is {self.cosine:.3f}, {middle}"

    def decide(self) -> Literal["eps", "v"] | None:
        """Return the prediction type, or None if the outputs are of another kind or ambiguous."""
        if self.cosine > COSINE_LIMITS[1] and abs(self.image) < SHARE_LIMITS[0]:
            return "eps"
        is_image = abs(self.cosine) < COSINE_LIMITS[0] and -self.image > SHARE_LIMITS[1]
        return "v" if is_image and self.noise < SHARE_LIMITS[2] else None


def decide_prediction(weights: Weights, path: Path, zsnr: bool | None = None) -> Detection:
    """Return a loaded model's detection with the prediction type that its UNet shows.

    Args:
        path: the checkpoint, for messages.
        zsnr: overrides what is usual for the family.

    Raises:
        WeightsError: the outputs are those of neither prediction type.
    """
    detection, probe = weights.detection, probe_unet(weights, weights.unet)
    prediction = probe.decide()
    if prediction is None:
        reason = f"nothing says what it predicts, and its network's outputs are ambiguous ({probe})"
        raise WeightsError(path, f"{reason}; {OVERRIDE}")
    if zsnr is None:
        zsnr = FAMILIES[detection.family].v_implies_zsnr
    zsnr = zsnr and prediction == "v"
    name = {"eps": "noise prediction", "v": "velocity prediction"}[prediction]
    evidence = f"{name}{', zero terminal SNR' if zsnr else ''}: its network's outputs show it ({probe})"
    facts = (*(fact for fact in detection.evidence if fact != str(ASSUMED)), evidence)
    return replace(detection, prediction=prediction, zsnr=zsnr, evidence=facts, is_assumed=False)


def check_inpainting_prediction(weights: Weights, path: Path) -> None:
    """Raise WeightsError if the inpainting UNet, which was read from `path`, predicts something else than the model."""
    if (
        weights.inpainting is None or weights.detection.prediction == "edm_v"
    ):  # not probed: it has other timesteps
        return
    probe = probe_unet(weights, weights.inpainting, channels=9)
    if probe.decide() != weights.detection.prediction:
        reason = f"its UNet does not predict {weights.detection.prediction}, as the model's does ({probe})"
        raise WeightsError(path, reason)


@torch.inference_mode()
def probe_unet(weights: Weights, unet: UNet, channels: int = 4) -> Probe:
    """Run a UNet on noise and on a white image under noise, with a model's other networks and the empty prompt.

    Args:
        channels: input channels of the UNet; an inpainting one gets a mask that covers the entire image.
    """
    white = torch.ones(3, 8 * SIDE, 8 * SIDE, device=weights.device)
    vae = VaeCodec(weights.vae, weights.architecture.latent_scale, weights.vae_dtype)
    image = vae.encode(white)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).to(image)
    mask, gray = torch.ones_like(image[:1]), torch.zeros_like(white)
    extra = None if channels == 4 else build_inpaint_channels(mask, vae.encode(gray))
    empty = PromptEncoder(weights.text_encoders, weights.device).encode(Prompts("", "")).positive
    takes_size_ids = FAMILIES[weights.architecture.family].takes_size_ids
    size_ids = (8 * SIDE, 8 * SIDE, 0, 0, 8 * SIDE, 8 * SIDE) if takes_size_ids else None
    table = scaled_linear()
    high, middle = table.sigmas[-1], table.sigmas[MIDDLE_TIMESTEP]
    inputs = ((high * noise, high), (image + middle * noise, middle))
    rows = [Row(*view, empty, size_ids, extra) for view in inputs]
    outputs = RowBatcher(unet, table, weights.device, weights.dtype).evaluate(rows)
    cosine = float(cosine_similarity(outputs[0].flatten(), noise.flatten(), dim=0))
    return Probe(cosine, *_measure_shares(outputs[1], noise, image))


def _measure_shares(output: Tensor, *parts: Tensor) -> tuple[float, ...]:
    """The factors of the parts in the sum of them that is nearest to the output (least squares)."""
    columns = torch.stack([part.flatten() for part in parts], dim=1).double().cpu()
    solution = cast("Any", torch.linalg).lstsq(columns, output.flatten()[:, None].double().cpu()).solution
    return tuple(solution.flatten().tolist())
