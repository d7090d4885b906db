from multiprocessing import Manager
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from demo import distributed


def test_a_single_process_keeps_its_gradients(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    distributed.join_processes()
    layer = nn.Linear(2, 1)
    layer(torch.ones(1, 2)).sum().backward()
    before = layer.weight.grad
    distributed.share_gradients(layer)
    assert distributed.get_rank() == 0
    assert layer.weight.grad is before


def run_member(rank, store, gradients):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    layers = nn.ModuleList([nn.Linear(2, 1), nn.Linear(1, 1)])
    loss = layers[0](torch.full((1, 2), 3.0 + 2 * rank)).sum()
    (loss + layers[1](torch.ones(1, 1)).sum() if rank else loss).backward()
    distributed.share_gradients(layers)
    assert distributed.get_rank() == rank
    gradients[rank] = [cast("Tensor", weight.grad).flatten().tolist() for weight in layers.parameters()]
    dist.destroy_process_group()


def test_all_processes_get_the_mean_gradient(tmp_path):
    with Manager() as manager:
        gradients = manager.dict()
        spawn(run_member, (str(tmp_path / "store"), gradients), nprocs=2)
        assert gradients[0] == gradients[1] == [[4.0, 4.0], [1.0], [0.5], [0.5]]
