import math

import pytest
import torch

from pipelines.errors import Cancelled
from pipelines.sampling.batching import RowBatcher
from pipelines.sampling.denoise import Row
from pipelines.sampling.prediction import scaled_linear
from pipelines.types import BatchingMode

TABLE = scaled_linear(zsnr=True)
CPU = torch.device("cpu")


class Net:
    """Answers with the mean of what it was given, and remembers every pass."""

    def __init__(self):
        self.passes = []

    def __call__(self, sample, timestep, context, added_cond_kwargs, halvings):
        self.passes.append((sample, timestep, context, added_cond_kwargs))
        return sample[:, :4] + context.mean(dim=(1, 2))[:, None, None, None]


def conductor(net, batching: BatchingMode = "exact", most_rows=8):
    return RowBatcher(net, TABLE, CPU, torch.float32, batching, most_rows)


def row(value=1.0, sigma=3.0, side=4, **more):
    return Row(
        torch.full((4, side, side), value, dtype=torch.float64), sigma, torch.full((77, 2), value), **more
    )


def test_rows_of_equal_shape_share_a_pass_and_come_back_in_order():
    net = Net()
    outputs = conductor(net).evaluate([row(1.0), row(2.0, side=8), row(3.0)])
    assert [tuple(sample.shape) for sample, *_ in net.passes] == [(2, 4, 4, 4), (1, 4, 8, 8)]
    assert [tuple(output.shape) for output in outputs] == [(4, 4, 4), (4, 8, 8), (4, 4, 4)]
    assert float(outputs[2].mean()) > float(outputs[0].mean())


def test_rows_keep_their_own_sigma_and_size_ids():
    net = Net()
    ids = (64, 32, 0, 0, 64, 32)
    conductor(net).evaluate([
        row(sigma=math.inf, pooled=torch.ones(3), time_ids=ids), row(sigma=0.03, pooled=torch.ones(3), time_ids=(1, 2, 3, 4, 5, 6)),
    ])  # fmt: skip
    sample, times, _, added = net.passes[0]
    assert times.tolist() == [999, 0]
    assert added["time_ids"].tolist() == [[float(value) for value in ids], [1, 2, 3, 4, 5, 6]]
    assert added["time_ids"].dtype == torch.float32
    assert float(sample[0].mean()) == 1.0  # unit noise goes in as it is
    assert float(sample[1].mean()) == pytest.approx(1 / math.sqrt(1 + 0.03**2))


def test_extra_channels_go_in_unscaled_behind_the_latents():
    net = Net()
    conductor(net).evaluate([row(sigma=3.0, extra_channels=torch.full((5, 4, 4), 7.0))])
    sample = net.passes[0][0]
    assert sample.shape == (1, 9, 4, 4)
    assert torch.equal(sample[0, 4:], torch.full((5, 4, 4), 7.0))
    assert float(sample[0, 0].mean()) == pytest.approx(1 / math.sqrt(10))


def test_outputs_come_back_in_the_rows_own_precision():
    assert conductor(Net()).evaluate([row()])[0].dtype == torch.float64


def test_no_pass_is_larger_than_allowed():
    net = Net()
    conductor(net, most_rows=2).evaluate([row()] * 5)
    assert [len(sample) for sample, *_ in net.passes] == [2, 2, 1]


def trajectory(steps, value):
    total = 0.0
    for _ in range(steps):
        outputs = yield (row(value), row(-value))
        total += float((outputs[0] - outputs[1]).mean())
    return torch.tensor(total)


@pytest.mark.parametrize(("batching", "widths"), [("exact", [2, 2, 2]), ("shared", [4, 2])])
def test_images_run_alone_under_exact_and_together_under_shared(batching, widths):
    net = Net()
    results = conductor(net, batching).run([trajectory(1, 1.0), trajectory(2, 2.0)], lambda *_: None)
    assert [len(sample) for sample, *_ in net.passes] == widths
    alone = [
        conductor(Net()).run([trajectory(*arguments)], lambda *_: None)[0]
        for arguments in ((1, 1.0), (2, 2.0))
    ]
    torch.testing.assert_close(torch.stack(results), torch.stack(alone))


def test_stopping_closes_every_trajectory():
    closed = []

    def watched():
        try:
            while True:
                yield (row(),)
        finally:
            closed.append(True)

    def stop(image, sigma):
        if image == 1:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        conductor(Net()).run([watched(), watched()], stop)
    assert closed == [True, True]
