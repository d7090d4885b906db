"""The UNet's compiled passes, with a backend that runs what torch traced without a compiler."""

import gc
import logging
from typing import Any
from weakref import ref

import pytest
import torch
from compilers import Backend
from launches import record_launches
from unets import Tape, shrink_demo

from demo.checkpoint import random_weights
from pipelines.compiled import CompiledShapes
from pipelines.speed import Speed
from pipelines.unet.attention import Context
from pipelines.unet.graphs import UNetGraphs
from pipelines.weights.networks import TorchUNet, load_state


@pytest.fixture
def backend():
    return Backend()


@pytest.fixture
def build(backend):
    """Build a UNet whose passes can be compiled."""

    def build(speed):
        unet: Any = TorchUNet(shrink_demo().unet)
        load_state(unet.module, random_weights(unet.module, 3))
        if speed.weights != "full":
            unet.quantize(speed.weights, torch.device("cpu"))
        unet.optimize(speed, torch.device("cpu"))
        unet._compiled = unet._compiled and CompiledShapes("the UNet", backend)
        return unet

    return build


@pytest.fixture
def unet(build):
    return build(Speed(compile_unet=True))


@torch.inference_mode()
def make_inputs(unet, side=8, tokens=5, rows=2, seed=1):
    def draw(*shape):
        return torch.randn(rows, *shape, generator=generator)

    generator = torch.Generator().manual_seed(seed)
    width = unet.module.shape.embedding
    return draw(4, side, side), draw(width), Context(draw(tokens, unet.module.width))


@torch.inference_mode()
def compile_for(unet, *inputs):
    with unet.compile_passes():
        return unet(*inputs)


@torch.inference_mode()
def check(unet, *inputs):
    torch.testing.assert_close(unet(*inputs), unet.module(*inputs))


def test_passes_of_a_shape_that_was_compiled_run_compiled_and_others_do_not(unet, backend, caplog):
    with caplog.at_level(logging.INFO, "naiad"):
        compile_for(unet, *make_inputs(unet))
    begun, done = [record.getMessage() for record in caplog.records if record.name == "naiad"]
    assert begun == "the UNet is being compiled for 64x64 and 5 tokens; that can take minutes"
    assert done.startswith("the UNet is compiled for 64x64 and 5 tokens, in ")
    assert backend.counts == (1, 2)  # compared once
    for other in ({"side": 6}, {"tokens": 6}, {"rows": 1}):
        check(unet, *make_inputs(unet, **other))
    assert backend.counts == (1, 2)
    check(unet, *make_inputs(unet, seed=2))
    assert backend.counts == (1, 3)


@torch.inference_mode()
def test_full_and_shallow_passes_of_a_step_cache_are_compiled_apart(unet, backend):
    inputs = make_inputs(unet)
    with unet.compile_passes():
        _, deep = unet.run_full(*inputs)
        unet.run_shallow(*inputs, deep)
    assert backend.counts == (2, 4)
    output, again = unet.run_full(*inputs)
    torch.testing.assert_close(again, deep)
    torch.testing.assert_close(output, unet.module(*inputs))
    torch.testing.assert_close(unet.run_shallow(*inputs, deep), output)
    assert backend.counts == (2, 6)


@torch.inference_mode()
def test_changes_of_the_weights_in_place_are_seen(unet, backend):
    inputs = make_inputs(unet)
    before = compile_for(unet, *inputs)
    block = next(unet.module.iter_blocks())
    for layer in (block.attn1.to_q, block.ff.net[0].proj):
        layer.weight.mul_(2)  # as a LoRA does
    assert not torch.equal(unet(*inputs), before)
    check(unet, *inputs)
    assert backend.counts == (1, 4)


def test_weights_that_moved_are_used_where_they_are_now(unet, backend):
    compile_for(unet, *make_inputs(unet))
    unet.module.to(torch.float64).to(torch.float32)
    check(unet, *make_inputs(unet))
    assert backend.counts == (1, 3)


@pytest.mark.parametrize(
    "speed",
    [
        Speed(compile_unet=True, channels_last=True, fused_projections=True, kernels=True),
        Speed(compile_unet=True, fused_projections=True, weights="int8"),
        Speed(compile_unet=True, weights="float8"),
    ],
)
def test_every_way_to_run_it_is_one_graph(build, backend, speed):
    unet = build(speed)
    compile_for(unet, *make_inputs(unet))
    check(unet, *make_inputs(unet, seed=2))
    assert backend.counts == (1, 3)


def test_compiled_passes_launch_no_kernels(build, backend, monkeypatch):
    launches = record_launches(monkeypatch)
    unet = build(Speed(compile_unet=True, channels_last=True, kernels=True))
    compile_for(unet, *make_inputs(unet))
    assert set(launches) == {"group_norm", "geglu"}  # of the pass that the compiled one is compared with
    launches.clear()
    with torch.inference_mode():
        unet(*make_inputs(unet))
    assert not launches
    assert backend.counts == (1, 3)


@torch.inference_mode()
def test_a_graph_of_the_device_repeats_what_was_compiled(unet, backend):
    tape = Tape()
    unet._graphs = UNetGraphs(unet._run, tape.capture)
    compile_for(unet, *make_inputs(unet))
    assert backend.compilations == len(tape.captured) == 1
    runs = backend.runs
    check(unet, *make_inputs(unet, seed=2))
    assert backend.runs == runs + 1


def test_compiled_code_keeps_no_inputs(unet):
    sample, embedding, context = make_inputs(unet)
    compile_for(unet, sample, embedding, context)
    kept = [ref(tensor) for tensor in (sample, embedding, context.keys_values)]
    del sample, embedding, context
    gc.collect()
    assert [each() for each in kept] == [None] * 3


@torch.inference_mode()
def test_nothing_is_compiled_unless_that_was_chosen_and_while_passes_are(build, unet, backend):
    check(unet, *make_inputs(unet))
    plain = build(Speed())
    compile_for(plain, *make_inputs(plain))
    assert backend.counts == (0, 0)
