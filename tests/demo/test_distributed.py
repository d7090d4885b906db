from multiprocessing import Manager
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from demo import distributed


def test_alone_nothing_is_shared(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    distributed.join_processes()
    line = nn.Linear(2, 1)
    line(torch.ones(1, 2)).sum().backward()
    before = line.weight.grad
    distributed.share_gradients(line)
    assert distributed.get_rank() == 0
    assert line.weight.grad is before


def member(number, store, found):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    lines = nn.ModuleList([nn.Linear(2, 1), nn.Linear(1, 1)])
    loss = lines[0](torch.full((1, 2), 3.0 + 2 * number)).sum()
    (loss + lines[1](torch.ones(1, 1)).sum() if number else loss).backward()
    distributed.share_gradients(lines)
    assert distributed.get_rank() == number
    found[number] = [cast("Tensor", weight.grad).flatten().tolist() for weight in lines.parameters()]
    dist.destroy_process_group()


def test_everyone_goes_on_with_the_mean(tmp_path):
    with Manager() as manager:
        found = manager.dict()
        spawn(member, (str(tmp_path / "store"), found), nprocs=2)
        assert found[0] == found[1] == [[4.0, 4.0], [1.0], [0.5], [0.5]]
