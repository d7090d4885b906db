"""Compilation of networks, with a backend that runs what torch traced without a compiler."""

import logging
from typing import Any

import pytest
import torch
from compilers import Backend
from launches import record_launches

from demo.checkpoint import random_weights
from pipelines.compiled import CompiledShapes
from pipelines.image.vae import Tiling, VaeCodec
from pipelines.speed import Speed
from pipelines.weights.architecture import sdxl
from pipelines.weights.networks import TorchVae, load_state

CONFIG = dict(sdxl().vae) | {
    "block_out_channels": [4, 4],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 2,
}


@pytest.fixture
def backend():
    return Backend()


class SmallVae(TorchVae):
    """A VAE whose decoder is a convolution, which is traced fast."""

    def __init__(self, backend):
        self.module: Any = torch.nn.Conv2d(4, 3, 1).requires_grad_(False)
        self.module.decode = self.module.forward
        self._compiled = CompiledShapes("the decoder", backend)


@pytest.fixture
def vae(backend):
    """A VAE that is compiled for 4x6 latents."""
    vae = SmallVae(backend)
    assert compile_for(vae, make_latents())
    assert backend.counts == (1, 1)  # it was run to be compared
    return vae


def make_latents(width=6, batch=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(width)
    return torch.randn(batch, 4, 4, width, generator=generator).to(dtype)


def compile_for(vae, latents):
    return vae._compile_for(vae._compiled, latents)


def check(vae, latents):
    torch.testing.assert_close(vae.decode(latents), vae.module.decode(latents))


def test_only_what_was_compiled_before_runs_compiled(vae, backend):
    assert compile_for(vae, make_latents(7))
    assert backend.counts == (2, 2)
    for latents in (make_latents(6), make_latents(7)):
        check(vae, latents)
    assert backend.counts == (2, 4)
    for latents in (make_latents(8), make_latents(6, batch=2)):
        check(vae, latents)
    assert backend.counts == (2, 4)


def test_more_sizes_are_compiled_than_torch_keeps_of_a_function(vae, backend):
    assert all(compile_for(vae, make_latents(width)) for width in range(7, 17))
    check(vae, make_latents())
    assert backend.counts == (11, 12)


def test_latents_that_lie_differently_in_memory_run_compiled_too(vae, backend):
    for latents in (make_latents(12)[..., 3:9], make_latents().to(memory_format=torch.channels_last)):
        check(vae, latents)
    assert backend.counts == (1, 3)


def test_decoders_of_more_models_are_compiled_than_torch_keeps_of_a_function(vae, backend):
    others = [SmallVae(backend) for _ in range(10)]
    assert all(compile_for(other, make_latents()) for other in others)
    for each in (vae, *others):
        check(each, make_latents())
    assert backend.counts == (11, 22)


@torch.inference_mode()
def test_compiled_code_reads_the_weights_as_they_are(vae, backend):
    wide = make_latents(dtype=torch.float64)
    vae.to(torch.float64)  # as after an overflow
    check(vae, wide)
    vae.to(torch.float32)
    with torch.inference_mode(False):
        vae.module.weight.mul_(1.1)
    check(vae, make_latents())
    assert backend.counts == (1, 2)


@torch.inference_mode()
def test_a_size_that_torch_would_compile_again_runs_uncompiled(vae, backend, caplog):
    vae.module.to(torch.float64).to(torch.float32)  # in inference mode: tensors of another kind
    caplog.clear()
    for _ in range(2):
        check(vae, make_latents())
    assert backend.counts == (1, 1)
    (message,) = caplog.messages
    assert message.startswith("the decoder runs uncompiled for 48x32 from now on: Detected recompile")


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ({"error": OSError("no compiler")}, "the decoder is not compiled for 48x32: no compiler"),
        ({"offset": 5.0}, "the decoder, compiled for 48x32, differs by"),
    ],
)
def test_a_size_whose_compilation_fails_runs_uncompiled(backend, caplog, failure, message):
    vars(backend).update(failure)
    vae = SmallVae(backend)
    with caplog.at_level(logging.WARNING):
        assert not compile_for(vae, make_latents())
    (record,) = [record for record in caplog.records if record.name == "naiad"]
    assert record.getMessage().startswith(message)
    check(vae, make_latents())
    assert backend.counts == (1, 1)


def test_errors_of_compiled_code_are_raised(vae, backend):
    backend.error = torch.OutOfMemoryError("out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        vae.decode(make_latents())
    backend.error = None
    vae.decode(make_latents())
    assert backend.counts == (1, 3)  # and it can be run again


def build_vae():
    vae = TorchVae(CONFIG)
    load_state(vae.module, random_weights(vae.module, 3))
    return vae


def test_the_decoder_is_one_graph_of_torch_s_own_operations(backend, monkeypatch):
    vae = build_vae()
    calls = record_launches(monkeypatch)
    vae.optimize(Speed(channels_last=True, kernels=True))
    vae._compiled = CompiledShapes("the decoder", backend)
    assert compile_for(vae, make_latents())
    assert calls  # of the decoder that the compiled one is compared with
    calls.clear()
    vae.decode(make_latents())
    assert not calls
    assert backend.counts == (1, 2)


class RecordingVae:
    def compile_decoder(self, sizes):
        self.sizes = list(sizes)


def test_images_in_tiles_are_compiled_for_a_tile():
    vae: Any = RecordingVae()
    codec = VaeCodec(vae, 1.0, torch.float32, Tiling(tile=8, overlap=2, untiled=100))
    codec.compile_decoder([(10, 10), (10, 11), (30, 30), (6, 40)])
    assert vae.sizes == [(10, 10), (8, 8), (6, 8)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecates
def test_a_compiler_s_code_returns_the_decoder_s_images():
    vae: Any = build_vae()
    vae.optimize(Speed(channels_last=True, compile_vae=True))
    vae.compile_decoder([(4, 6)])
    assert len(vae._compiled._compiled) == 1
    with torch.inference_mode():
        torch.testing.assert_close(vae.decode(make_latents()), vae.module.decode(make_latents()))


def test_nothing_is_compiled_unless_that_was_chosen():
    vae: Any = build_vae()
    vae.optimize(Speed())
    vae.compile_decoder([(4, 6)])
    assert vae._compiled is None
