"""Muon (Jordan et al. 2024): momentum whose every direction is made to count the same, for weights that are matrices.

Beside AdamW it takes fewer steps by a third and more on the demo's UNet, and a step costs a quarter more.
"""

from collections.abc import Callable, Iterable
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM, DECAY = 0.95, 0.01
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Brings singular values near 1 in five rounds."""


def orthogonalize(matrix: Tensor, rounds: int = 5) -> Tensor:
    """About the nearest matrix (rows, columns) with orthonormal rows or columns, by Newton-Schulz iteration."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix) / (matrix.norm() + 1e-7)
    for _ in range(rounds):
        square = x @ x.T
        x = torch.addmm(a * x, torch.addmm(b * square, square, square, beta=1, alpha=c), x)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Steps for matrices and convolutions, of the size AdamW's would have (Liu et al. 2025)."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Move every weight that has a gradient; `closure` is torch's and not used."""
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group["lr"])

    def _update(self, weight: Tensor, gradient: Tensor, rate: float) -> None:
        kept: dict[str, Any] = self.state[weight]
        momentum = kept.setdefault("momentum", torch.zeros_like(weight))
        momentum.lerp_(gradient, 1 - MOMENTUM)
        ahead = gradient.lerp(momentum, MOMENTUM).flatten(1)
        update = orthogonalize(ahead) * (0.2 * sqrt(max(ahead.shape)))
        weight.mul_(1 - rate * DECAY).add_(update.view_as(weight), alpha=-rate)


def build_adamw(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """AdamW for everything."""
    return [_make_adamw(model.parameters(), rate)]


def build_muon(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for what maps features to features; AdamW for the rest: embeddings, biases, norms, first and last layer."""
    named = list(model.named_parameters())
    inner = [
        weight
        for name, weight in named
        if weight.ndim > 1 and not any(part in name for part in ("embedding", "conv_in", "conv_out"))
    ]
    taken = {id(weight) for weight in inner}
    return [Muon(inner, rate), _make_adamw((weight for _, weight in named if id(weight) not in taken), rate)]


def _make_adamw(weights: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.98), weight_decay=DECAY)
