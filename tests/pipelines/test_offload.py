"""Weights that wait in CPU memory; copies are clones here, and a fake device says which of them are finished."""

import pytest
import torch
from adapter_files import build_unet
from torch import nn

from pipelines.offload import Offload, PlainCopier, make_copier, move_weights


class Copier:
    """Copies tensors to other ones, which are zero until they are finished."""

    def __init__(self):
        self.started, self.waiting = [], {}

    def start(self, tensors):
        copies = [torch.zeros_like(tensor) for tensor in tensors]
        self.started.append(len(tensors))
        self.waiting[id(copies)] = tensors
        return copies

    def finish(self, copies):
        for copy, tensor in zip(copies, self.waiting.pop(id(copies), ()), strict=False):
            copy.copy_(tensor)


def make_network():
    torch.manual_seed(1)
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))).requires_grad_(False)


@pytest.fixture
def network():
    """A network whose layers are offloaded, the offload, its copier, and the output that it should have."""
    module, copier = make_network(), Copier()
    offload = Offload(copier)
    for layer in module:
        offload.add(layer)
    return module, offload, copier, make_network()(torch.ones(1, 4))


@torch.inference_mode()
def test_outputs_are_the_same_and_at_most_two_layers_are_on_the_device(network):
    module, offload, _, expected = network
    sizes = []
    for layer in module:
        layer.register_forward_pre_hook(lambda *_: sizes.append(offload.device_size))
    for _ in range(3):
        assert torch.equal(module(torch.ones(1, 4)), expected)
    one = offload.size // 4
    assert sizes[:4] == [one] * 4  # the order is not known yet
    assert set(sizes[4:]) == {2 * one}


@torch.inference_mode()
def test_each_layer_is_copied_ahead_once_a_pass(network):
    module, _, copier, expected = network
    module(torch.ones(1, 4))
    copier.started.clear()
    assert torch.equal(module(torch.ones(1, 4)), expected)
    # all four, and the first one for the next pass
    assert len(copier.started) == 5


@torch.inference_mode()
def test_another_order_of_layers_is_right_too(network):
    module, _, _, expected = network
    for _ in range(2):
        module(torch.ones(1, 4))
        layer, same = module.get_submodule("2"), make_network().get_submodule("2")
        assert torch.equal(layer(torch.ones(1, 4)), same(torch.ones(1, 4)))
        assert torch.equal(module(torch.ones(1, 4)), expected)


@torch.inference_mode()
def test_a_change_reaches_a_copy_that_was_made_ahead(network):
    module, offload, _, _ = network
    for _ in range(2):
        module(torch.ones(1, 4))
    offload.clear()
    changed = make_network()
    for network_ in (module, changed):
        network_.get_parameter("0.weight").mul_(2.0)
    assert torch.equal(module(torch.ones(1, 4)), changed(torch.ones(1, 4)))


@torch.inference_mode()
def test_an_error_in_a_layer_leaves_no_weights_behind(network):
    module, offload, _, expected = network
    handle = module[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        module(torch.ones(1, 4))
    handle.remove()
    offload.clear()
    assert offload.device_size == 0
    assert torch.equal(module(torch.ones(1, 4)), expected)


def test_moving_a_network_leaves_the_weights_that_wait():
    unet = build_unet("sdxl").module.requires_grad_(False)
    offload = Offload(PlainCopier(torch.device("cpu")))
    block = unet.mid_block.attentions[0].transformer_blocks[0]
    offload.add(block.attn2.to_k)
    offload.add(block, [block.attn2.to_k])
    move_weights(unet, torch.device("meta"), offload)
    places = {weight.device.type for weight in block.parameters()}
    assert places == {"cpu"}
    assert unet.conv_in.weight.device.type == "meta"
    parts = [block.attn2.to_k, block]
    assert offload.size == sum(weight.nbytes for weight in block.parameters()), parts


def test_only_a_gpu_has_streams_to_copy_on():
    assert isinstance(make_copier(torch.device("cpu")), PlainCopier)
