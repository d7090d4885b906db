"""Small ESRGAN networks for tests, with random weights or with weights that make the output predictable."""

from typing import Any

import numpy as np
import torch

from pipelines.upscale.rrdbnet import RrdbConfig, RrdbNet


def small_config(*, doublings=2, fold=1, blocks=2):
    return RrdbConfig(features=8, growth=4, blocks=blocks, doublings=doublings, fold=fold)


def random_network(config=None, gain=1.0, seed=0) -> Any:
    """PyTorch's initialization times a gain; the output has mean 0.5 and deviation 0.2 in each color."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = RrdbNet(config or small_config()).eval().requires_grad_(False)
        images = torch.rand(1, 3, 32, 32)
    for name, weight in network.named_parameters():
        if name.endswith("weight"):
            weight *= gain
    last: Any = network["conv_last"]
    last.weight *= (0.2 / network(images).std((0, 2, 3)))[:, None, None, None]
    last.bias += 0.5 - network(images).mean((0, 2, 3))
    return network


def repeating_network(config=None) -> Any:
    """A network that repeats pixels; its blocks contribute nothing."""
    network = RrdbNet(config or small_config()).eval().requires_grad_(False)
    for weight in network.parameters():
        weight.zero_()
    for name, conv in network.items():
        if name not in ("body", "conv_body"):
            make_identity(conv)
    return network


def make_identity(conv):
    """Make a convolution return its first input channels."""
    for channel in range(min(conv.weight.shape[:2])):
        conv.weight[channel, channel, 1, 1] = 1.0


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
