import torch
from torch import Tensor

from pipelines.sampling.denoise import Row
from pipelines.sampling.prediction import scaled_linear
from pipelines.sampling.prepared import PreparedPrompts
from pipelines.text.encoding import Conditioning


class Projection:
    """A UNet that only projects prompts, and keeps what it returned."""

    def __init__(self):
        self.results = list[Tensor]()

    def project(self, context):
        self.results.append(2 * context)
        return self.results[-1]


def make_row(value):
    return Row(torch.zeros(4, 8, 8), 3.0, Conditioning(torch.full((77, 6), value), None))


def count_bytes(tensors):
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())  # fmt: skip


def test_a_prompts_keys_are_in_memory_once():
    unet = Projection()
    prompts = PreparedPrompts(unet, scaled_linear(), torch.device("cpu"))  # pyright: ignore[reportArgumentType]
    rows = [make_row(1.0), make_row(2.0)]
    context = prompts.stack_contexts(rows)
    held = [prompts._prepare(row.conditioning).keys_values for row in rows]
    assert count_bytes([context.keys_values, *held]) == 2 * 77 * 6 * 4
    assert prompts.stack_contexts(rows) is context


def test_contexts_are_right_when_batches_change_and_a_prompt_is_in_one_twice():
    unet = Projection()
    prompts = PreparedPrompts(unet, scaled_linear(), torch.device("cpu"))  # pyright: ignore[reportArgumentType]
    one, two = make_row(1.0), make_row(2.0)
    for rows in ([one], [two, one], [one, one, two], [two]):
        context = prompts.stack_contexts(rows)
        expected = [2 * row.conditioning.context for row in rows]
        assert torch.equal(context.keys_values, torch.stack(expected))
        assert prompts.stack_contexts(rows) is context
    assert len(unet.results) == 2
