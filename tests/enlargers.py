"""Small ESRGAN networks for tests: with weights at random, or such that the outcome is known."""

from typing import Any

import numpy as np
import torch

from pipelines.upscale.rrdbnet import RrdbConfig, RrdbNet


def shape(*, doublings=2, fold=1, blocks=2):
    return RrdbConfig(features=8, growth=4, blocks=blocks, doublings=doublings, fold=fold)


def at_random(made=None, gain=1.0, seed=0) -> Any:
    """PyTorch's own initialisation, times a gain; each colour comes out with a mean of 0.5, a deviation of 0.2."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = RrdbNet(made or shape()).eval().requires_grad_(False)
        given = torch.rand(1, 3, 32, 32)
    for name, weight in network.named_parameters():
        if name.endswith("weight"):
            weight *= gain
    last: Any = network["conv_last"]
    last.weight *= (0.2 / network(given).std((0, 2, 3)))[:, None, None, None]
    last.bias += 0.5 - network(given).mean((0, 2, 3))
    return network


def repeating(made=None) -> Any:
    """A network whose blocks count for nothing and which repeats pixels."""
    network = RrdbNet(made or shape()).eval().requires_grad_(False)
    for weight in network.parameters():
        weight.zero_()
    for name, conv in network.items():
        if name not in ("body", "conv_body"):
            pass_on(conv)
    return network


def pass_on(conv, gain=1.0):
    """Make a convolution hand on its first channels as they are."""
    for channel in range(min(conv.weight.shape[:2])):
        conv.weight[channel, channel, 1, 1] = gain


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
