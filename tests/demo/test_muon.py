from typing import Any

import torch
from torch import nn

from demo.muon import Muon, build_muon, orthogonalize


def test_orthogonalized_matrices_have_singular_values_near_one():
    for shape in ((12, 40), (40, 12)):
        matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
        matrix[:, 0] *= 50
        values = torch.linalg.svdvals(orthogonalize(matrix))
        assert values.min() > 0.3
        assert values.max() < 1.3
        assert torch.linalg.svdvals(matrix).max() / torch.linalg.svdvals(matrix).min() > 10


def test_a_step_has_the_size_of_adamws_for_any_gradient():
    for shape in ((64, 64), (32, 16, 3, 3)):
        for size in (1e-6, 1e3):
            weight = nn.Parameter(torch.zeros(shape))
            weight.grad = size * torch.randn(shape, generator=torch.Generator().manual_seed(2))
            Muon([weight], lr=0.1).step()
            assert 0.5 < float(weight.detach().square().mean().sqrt()) / (0.1 * 0.2) < 1.5


def test_every_weight_has_one_optimizer():
    model: Any = nn.ModuleDict(
        {"conv_in": nn.Conv2d(4, 8, 3), "inner": nn.Linear(8, 8), "norm": nn.LayerNorm(8)}
    )
    inner, rest = build_muon(model, 0.01)
    assert [weight is model["inner"].weight for weight in inner.param_groups[0]["params"]] == [True]
    assert len(rest.param_groups[0]["params"]) == 5
