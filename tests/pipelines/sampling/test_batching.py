import math
from contextlib import nullcontext

import pytest
import torch

from pipelines.sampling.batching import MOST_LATENTS, RowBatcher
from pipelines.sampling.denoise import Row
from pipelines.sampling.prediction import scaled_linear
from pipelines.text.encoding import Conditioning

TABLE = scaled_linear(zsnr=True)
CPU = torch.device("cpu")


class FakeUNet:
    """Adds the mean of the context to the latents, and records every pass.

    Its embeddings are the timesteps, and the size ids if there are any.
    """

    def __init__(self):
        self.passes, self.projected, self.deep = [], 0, []

    def project(self, context):
        self.projected += 1
        return context

    def project_image(self, vibe):
        raise NotImplementedError

    def drop_graphs(self):
        pass

    def compile_passes(self):
        return nullcontext()

    def embed(self, timesteps, pooled, size_ids):
        ids = torch.zeros(0) if size_ids is None else size_ids.float()
        return torch.cat([timesteps[:, None].float(), ids.expand(len(timesteps), -1)], dim=1)

    def __call__(self, sample, embedding, context, halvings=0, residuals=None):
        self.passes.append((sample, embedding))
        return sample[:, :4] + context.keys_values.mean(dim=(1, 2))[:, None, None, None]

    def run_full(self, *inputs):
        deep = torch.rand(len(inputs[0]), 3, 2, 4).contiguous(memory_format=torch.channels_last)
        return self(*inputs), deep

    def run_shallow(self, sample, embedding, context, deep):
        self.deep.append(deep)
        return self(sample, embedding, context)


def make_batcher(unet, shared_latents: float = MOST_LATENTS):
    return RowBatcher(unet, TABLE, CPU, torch.float32, shared_latents)


def make_row(value=1.0, sigma=3.0, side=4, tokens=77, **inputs):
    latents = torch.full((4, side, side), value, dtype=torch.float64)
    return Row(latents, sigma, Conditioning(torch.full((tokens, 2), value), None), **inputs)


def test_rows_of_equal_shape_share_a_pass_and_outputs_keep_their_order():
    unet = FakeUNet()
    outputs = make_batcher(unet).evaluate([make_row(1.0), make_row(2.0, side=8), make_row(3.0)])
    assert [tuple(sample.shape) for sample, *_ in unet.passes] == [(2, 4, 4, 4), (1, 4, 8, 8)]
    assert [tuple(output.shape) for output in outputs] == [(4, 4, 4), (4, 8, 8), (4, 4, 4)]
    assert float(outputs[2].mean()) > float(outputs[0].mean())


def test_each_row_is_evaluated_with_its_own_sigma_and_time_ids():
    unet = FakeUNet()
    time_ids = (64, 32, 0, 0, 64, 32)
    make_batcher(unet).evaluate([
        make_row(sigma=math.inf, time_ids=time_ids), make_row(sigma=0.03, time_ids=(1, 2, 3, 4, 5, 6)),
    ])  # fmt: skip
    sample, embedding = unet.passes[0]
    assert embedding.tolist() == [[999, *time_ids], [0, 1, 2, 3, 4, 5, 6]]
    assert float(sample[0].mean()) == 1.0  # unit noise is not scaled
    assert float(sample[1].mean()) == pytest.approx(1 / math.sqrt(1 + 0.03**2))


def test_extra_channels_follow_the_latents_without_scaling():
    unet = FakeUNet()
    make_batcher(unet).evaluate([make_row(sigma=3.0, extra_channels=torch.full((5, 4, 4), 7.0))])
    sample = unet.passes[0][0]
    assert sample.shape == (1, 9, 4, 4)
    assert torch.equal(sample[0, 4:], torch.full((5, 4, 4), 7.0))
    assert float(sample[0, 0].mean()) == pytest.approx(1 / math.sqrt(10))


def test_outputs_have_the_dtype_of_the_rows():
    assert make_batcher(FakeUNet()).evaluate([make_row()])[0].dtype == torch.float64


@pytest.mark.parametrize("shared", [1.0, 5 * 512.0**2])
def test_the_rows_of_one_image_are_divided_alike_whatever_memory_is_free(shared):
    unet = FakeUNet()
    batcher = make_batcher(unet, shared)
    batcher.evaluate([make_row(side=256)] * 5 + [make_row(side=512)])
    assert [len(sample) for sample, *_ in unet.passes] == [2, 2, 1, 1] if shared == 1 else [5, 1]


def test_an_image_fills_a_share_of_a_pass_by_its_rows_and_their_size():
    batcher = make_batcher(FakeUNet(), 1000.0)
    assert batcher.find_share((make_row(), make_row())) == 2 * 16 / 1000
    assert batcher.find_share((make_row(side=20), make_row())) == (400 + 16) / 1000
    assert batcher.find_share((make_row(side=40),)) == 1.0


def test_images_share_a_pass_and_get_their_own_outputs():
    unet = FakeUNet()
    images = [(make_row(1.0), make_row(2.0)), (make_row(3.0),), (make_row(4.0, side=8),)]
    outputs = make_batcher(unet).evaluate_images(images)
    assert [len(sample) for sample, *_ in unet.passes] == [3, 1]
    assert [len(each) for each in outputs] == [2, 1, 1]
    for rows, together in zip(images, outputs, strict=True):
        torch.testing.assert_close(list(together), make_batcher(FakeUNet()).evaluate(rows))


def test_keys_are_equal_for_rows_of_equal_shapes_on_the_same_network():
    batcher = make_batcher(FakeUNet())
    key = batcher.make_key((make_row(1.0), make_row(2.0)))
    assert key == batcher.make_key((make_row(3.0, sigma=0.1),))
    assert key != batcher.make_key((make_row(side=8),))
    assert key != batcher.make_key((make_row(tokens=154),))
    assert key != make_batcher(FakeUNet()).make_key((make_row(1.0),))


def test_rows_keep_deep_features_of_their_own_and_are_given_them_in_the_layout_of_the_pass():
    unet, kept = FakeUNet(), [[], []]
    batcher = make_batcher(unet)
    batcher.evaluate([make_row(keep_deep=each.append) for each in kept])
    ((first,), (second,)) = kept
    assert not torch.equal(first, second)
    assert first.untyped_storage().nbytes() == first.nbytes
    batcher.evaluate([make_row(deep=second), make_row(deep=first)])
    (deep,) = unet.deep
    assert torch.equal(deep, torch.cat([second, first]))
    assert deep.is_contiguous(memory_format=torch.channels_last)


def test_rows_of_full_and_shallow_passes_do_not_share_one():
    unet = FakeUNet()
    batcher = make_batcher(unet)
    rows = make_row(), make_row(keep_deep=[].append), make_row(deep=torch.zeros(1, 3, 2, 2))
    batcher.evaluate(rows)
    assert [len(sample) for sample, _ in unet.passes] == [1, 1, 1]
    assert len({batcher.make_key((row,)) for row in rows}) == 3
