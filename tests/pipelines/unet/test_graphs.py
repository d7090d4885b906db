"""Graphs of UNet passes, with a capture that calls the function again in place of a GPU's."""

import pytest
import torch

from pipelines.adapters.attention import ImageGroup
from pipelines.unet.attention import Context
from pipelines.unet.graphs import MOST_GRAPHS, UNetGraphs, UNetInputs


class Device:
    """Passes that add up their inputs, and a capture that repeats a function into its first output, as a GPU does."""

    def __init__(self, error=None, offset=0.0):
        self.passes = self.captures = self.replays = 0
        self.error, self.offset = error, offset

    def run(self, inputs):
        self.passes += 1
        images = [group.keys_values.mean() * group.scales.sum() for group in inputs.context.images]
        output = inputs.sample + inputs.embedding.sum() + inputs.context.keys_values.mean() + sum(images)
        if inputs.deep is not None:
            output = output + inputs.deep.mean()
        return (output, 2 * output) if inputs.returns_deep else (output,)

    def capture(self, function):
        self.captures += 1
        if self.error is not None:
            raise self.error
        outputs = function()

        def replay():
            self.replays += 1
            for output, repeated in zip(outputs, function(), strict=True):
                output.copy_(repeated + self.offset)

        return replay, outputs


def make_inputs(value=1.0, side=4, rows=2, tokens=3, images=(), halvings=0, keys=None, **others):
    keys = torch.full((rows, tokens, 6), value) if keys is None else keys
    return UNetInputs(torch.full((rows, 4, side, side), value), torch.full((rows, 5), value), Context(keys, images), halvings, **others)  # fmt: skip


def assert_equal(outputs, expected):
    assert len(outputs) == len(expected)
    assert all(torch.equal(*pair) for pair in zip(outputs, expected, strict=True))


def make_group(value, rows=None):
    count = 2 if rows is None else len(rows)
    return ImageGroup(None if rows is None else torch.tensor(rows), torch.full((count, 1, 3, 6), value), torch.full((count, 1, 1, 1, 1), value))  # fmt: skip


def test_outputs_are_those_without_graphs_and_stay_as_they_are():
    device = Device()
    graphs = UNetGraphs(device.run, device.capture)
    inputs = [make_inputs(float(value)) for value in range(4)]
    outputs = [graphs.run(each) for each in inputs]
    for output, each in zip(outputs, inputs, strict=True):
        assert_equal(output, Device().run(each))
    assert device.captures == 1


def test_every_pass_is_repeated_from_the_graph_the_first_one_too():
    device = Device()
    graphs = UNetGraphs(device.run, device.capture)
    graphs.run(make_inputs())
    graphs.run(make_inputs())
    assert device.replays == 3  # one of them to compare with the pass itself


def test_each_structure_of_the_inputs_has_a_graph():
    device = Device()
    graphs = UNetGraphs(device.run, device.capture)
    kinds = [
        make_inputs(), make_inputs(side=8), make_inputs(rows=1), make_inputs(tokens=6), make_inputs(halvings=1),
        make_inputs(images=(make_group(1.0),)), make_inputs(images=(make_group(1.0, [1]),)),
        make_inputs(images=(make_group(1.0, [0]), make_group(2.0, [1]))),
        make_inputs(returns_deep=True), make_inputs(deep=torch.ones(2, 3, 2, 2)),
        make_inputs(images=(make_group(1.0),), deep=torch.ones(2, 3, 2, 2)),
    ]  # fmt: skip
    for _ in range(2):
        for inputs in kinds:
            assert_equal(graphs.run(inputs), Device().run(inputs))
    assert device.captures == len(kinds)


def test_images_of_another_job_replace_those_of_the_graph():
    device = Device()
    graphs = UNetGraphs(device.run, device.capture)
    for value in (1.0, 3.0, 1.0):
        inputs = make_inputs(images=(make_group(value, [1]),))
        assert_equal(graphs.run(inputs), Device().run(inputs))


def test_the_keys_of_a_prompt_are_copied_once_for_all_steps():
    device = Device()
    graphs = UNetGraphs(device.run, device.capture)
    keys = torch.full((2, 3, 6), 5.0)
    (first,) = graphs.run(make_inputs(keys=keys))
    (buffer,) = [buffer for buffer in graphs._buffers.values() if buffer.source is keys]
    buffer.tensor.zero_()
    assert_equal(graphs.run(make_inputs(keys=keys)), (first - 5.0,))  # not copied again
    assert_equal(graphs.run(make_inputs(keys=keys.clone())), (first,))


@pytest.mark.parametrize("device", [Device(RuntimeError("capture failed\nmore")), Device(offset=1.0)])
def test_without_a_graph_that_works_passes_run_as_before_and_one_line_is_logged(device, caplog):
    graphs = UNetGraphs(device.run, device.capture)
    for value in (1.0, 2.0):
        inputs = make_inputs(value)
        assert_equal(graphs.run(inputs), Device().run(inputs))
    assert device.captures == 1
    (record,) = caplog.records
    assert "CUDA graph for 32x32" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_an_error_of_the_pass_itself_is_not_hidden():
    def run(inputs):
        raise RuntimeError("device-side assert")

    with pytest.raises(RuntimeError, match="assert"):
        UNetGraphs(run, Device().capture).run(make_inputs())


def test_graphs_of_different_sizes_share_the_buffers_of_a_prompt():
    device = Device()
    graphs = UNetGraphs(device.run, device.capture)
    keys = torch.full((2, 3, 6), 5.0)
    for side in (4, 8, 4):
        inputs = make_inputs(side=side, keys=keys)
        assert_equal(graphs.run(inputs), Device().run(inputs))
    assert len(graphs._buffers) == 2 + 1 + 1  # latents of two sizes, an embedding and the keys
    graphs.drop()
    assert len(graphs._buffers) == 0


def test_deep_features_of_another_step_replace_those_of_the_graph():
    device = Device()
    graphs = UNetGraphs(device.run, device.capture)
    for value in (1.0, 3.0, 1.0):
        inputs = make_inputs(deep=torch.full((2, 3, 2, 2), value))
        assert_equal(graphs.run(inputs), Device().run(inputs))
    assert device.captures == 1


def test_deep_features_that_a_graph_returned_stay_as_they_are():
    device = Device()
    graphs = UNetGraphs(device.run, device.capture)
    _, deep = graphs.run(make_inputs(1.0, returns_deep=True))
    before = deep.clone()
    graphs.run(make_inputs(2.0, returns_deep=True))
    assert torch.equal(deep, before)


def test_dropped_graphs_are_captured_again_and_only_some_are_kept():
    device = Device()
    graphs = UNetGraphs(device.run, device.capture)
    graphs.run(make_inputs())
    graphs.drop()
    graphs.run(make_inputs())
    assert device.captures == 2
    for side in range(5, 5 + MOST_GRAPHS):
        graphs.run(make_inputs(side=side))
    graphs.run(make_inputs())
    assert device.captures == 2 + MOST_GRAPHS + 1
