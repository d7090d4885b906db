"""The prediction type as the network itself shows it, on the demo model and on networks computed from its outputs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from unets import TimedUNet

from pipelines.errors import WeightsError
from pipelines.sampling.prediction import scaled_linear
from pipelines.weights.detect import ASSUMED
from pipelines.weights.probe import Probe, decide_prediction, probe_unet

FILE = Path("merged.safetensors")
SIGMAS = torch.tensor(scaled_linear().sigmas)


def wrap(unet, convert):
    """Return a UNet with its velocities converted to what a network of another kind predicts."""

    def call(run, sample, timesteps):
        velocity, sigma = run(), SIGMAS[timesteps.long()][:, None, None, None]
        alpha = (sigma**2 + 1) ** -0.5
        noise = alpha * velocity + sigma * alpha * sample
        return convert(noise, alpha * sample - sigma * alpha * velocity)

    return TimedUNet(unet, call)


KINDS = {
    "eps": lambda noise, x0: noise,
    "x0": lambda noise, x0: x0,
    "flow": lambda noise, x0: noise - x0,
    "random": lambda noise, x0: torch.randn(noise.shape, generator=torch.Generator().manual_seed(1)),
}


def convert(weights, kind):
    facts = ("SDXL", str(ASSUMED), "the configuration sets zero terminal SNR to False")
    assumed = replace(weights.detection, prediction="eps", zsnr=False, evidence=facts, is_assumed=True)
    unet = weights.unet if kind == "v" else wrap(weights.unet, KINDS[kind])
    return replace(weights, unet=unet, detection=assumed)


@pytest.mark.parametrize(("kind", "zsnr"), [("v", True), ("eps", False)])
def test_a_network_shows_whether_it_predicts_velocity_or_noise(demo, kind, zsnr):
    detection = decide_prediction(convert(demo.weights, kind), FILE)
    assert (detection.prediction, detection.zsnr, detection.is_assumed) == (kind, zsnr, False)
    assert "outputs show it (cosine" in detection.evidence[-1]
    assert detection.evidence[:-1] == ("SDXL", "the configuration sets zero terminal SNR to False")


def test_a_configured_terminal_snr_overrides_the_usual_one(demo):
    assert not decide_prediction(convert(demo.weights, "v"), FILE, zsnr=False).zsnr


@pytest.mark.parametrize("kind", ["x0", "flow", "random"])
def test_a_network_of_another_kind_is_refused_with_the_setting_that_decides(demo, kind):
    with pytest.raises(
        WeightsError, match=r"merged\.safetensors: .* set its `prediction` to eps, v or edm_v"
    ):
        decide_prediction(convert(demo.weights, kind), FILE)


def test_the_margin_on_both_sides_is_large(demo):
    """benchmarks/results/probe.json has the figures of trained networks, for noise prediction too."""
    velocity = probe_unet(demo.weights, demo.weights.unet)
    noise = probe_unet(demo.weights, convert(demo.weights, "eps").unet)
    assert abs(velocity.cosine) < 0.2
    assert (velocity.noise, velocity.image) == pytest.approx((0.5, -0.87), abs=0.1)
    assert noise.cosine > 0.95
    assert (noise.noise, noise.image) == pytest.approx((1.0, 0.0), abs=0.1)


NAN = float("nan")


@pytest.mark.parametrize(
    ("cosine", "noise", "image", "prediction"),
    [(0.99, 1.0, 0.0, "eps"), (0.91, 1.0, -0.29, "eps"), (0.89, 1.0, 0.0, None), (0.99, 1.0, -0.31, None),
     (0.1, 0.5, -0.9, "v"), (-0.49, 0.7, -0.51, "v"), (0.51, 0.5, -0.9, None), (0.1, 0.8, -0.9, None),
     (0.1, 0.5, -0.4, None), (0.1, 0.5, 0.9, None), (NAN, 1.0, 0.0, None), (0.1, NAN, NAN, None)],
)  # fmt: skip
def test_only_clear_outputs_decide(cosine, noise, image, prediction):
    assert Probe(cosine, noise, image).decide() == prediction
