"""LoRAs on the demo model: applied in place, removed to the bit, and refused before anything is changed."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from threading import Event

import pytest
import torch
from jobs import make_job
from live_server import LIMIT, wait_until
from lora_files import KINDS, draw_change, name_lora, random_lora, write_lora

from demo.checkpoint import DEMO, INPAINTING
from pipelines.adapters.pristine import PristineWeights
from pipelines.adapters.residency import LoraResidency
from pipelines.errors import PipelineError, UnusableFile
from pipelines.job import Prompts
from pipelines.pipeline import Pipeline
from pipelines.speed import SpeedChoices
from pipelines.unet.quantized_linear import QuantizedLinear
from pipelines.weights.load import load_weights

UNET = {
    "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q": (64, 64),
    "lora_unet_input_blocks_0_0": (32, 4, 3, 3),
}
TEXT = {
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (32, 32),
    "lora_te2_text_model_encoder_layers_1_mlp_fc1": (256, 64),
}
PLAIN = make_job(64, 64, Prompts("red heart"), steps=2)
MIB = 1 << 20


@pytest.fixture(scope="module")
def weights():
    return load_weights(DEMO, inpainting=INPAINTING)


@pytest.fixture(scope="module")
def pipeline(weights):
    return Pipeline(weights)


@pytest.fixture
def lora(tmp_path):
    def make(name="a", layers=UNET | TEXT, size=0.2, seed=0, change=None, metadata=None, **strengths):
        tensors = random_lora(layers, size=size, seed=seed)
        if change is not None:
            change(tensors)
        return name_lora(write_lora(tmp_path / f"{name}.safetensors", tensors, metadata), **strengths)

    return make


def hash_weights(weights):
    """One hash of all weights of all networks, and the addresses of their tensors."""
    states = [part.part.module.state_dict() for part in weights.parts]
    digest = sha256(
        b"".join(
            tensor.contiguous().view(torch.uint8).numpy().tobytes()
            for state in states
            for tensor in state.values()
        )
    )
    return digest.hexdigest(), [tensor.data_ptr() for state in states for tensor in state.values()]


def hash_networks(weights):
    """A hash of each network's weights, by its folder; of an inpainting UNet too."""
    found = {}
    for part in weights.parts:
        found.setdefault(part.part.folder, []).append(hash_weights(replace(weights, parts=(part,)))[0])
    return found


def draw(pipeline, *loras, job=PLAIN):
    return pipeline.run(replace(job, loras=loras)).images[0]


@pytest.mark.parametrize("budget", [0, 1, 64])
def test_a_set_is_applied_removed_and_applied_again_to_the_bit(weights, lora, budget):
    files = {file: sha256(file.read_bytes()).hexdigest() for file in (DEMO, INPAINTING)}
    residency = LoraResidency(weights.parts, "sdxl", budget * MIB // 8)
    a, b = (lora("a"),), (lora("b", UNET, seed=1, unet=0.5),)
    before = hash_weights(weights)
    residency.activate(a)
    with_a = hash_weights(weights)
    residency.activate(b)
    with_b = hash_weights(weights)
    residency.activate(a)
    assert hash_weights(weights) == with_a
    residency.activate(())
    assert hash_weights(weights) == before
    assert len({before[0], with_a[0], with_b[0]}) == 3
    assert {file: sha256(file.read_bytes()).hexdigest() for file in files} == files


@pytest.mark.parametrize(("name", "budget"), [("int8", 0), ("float8", 64)])
def test_quantized_weights_are_changed_in_full_and_quantized_again(weights, lora, name, budget):
    choices = SpeedChoices(weights=name, fused_projections="on")
    quantized = load_weights(DEMO, inpainting=INPAINTING, speed=choices)
    residency = LoraResidency(quantized.parts, "sdxl", budget * MIB)
    before, set_ = hash_weights(quantized), (lora("a"),)
    residency.activate(set_)
    changed = hash_weights(quantized)
    in_full = LoraResidency(weights.parts, "sdxl", 64 * MIB)
    in_full.activate(set_)
    for part, plain in zip(quantized.parts, weights.parts, strict=True):
        for path, layer in part.part.module.named_modules():
            if isinstance(layer, QuantizedLinear):
                expected = QuantizedLinear(plain.part.module.get_submodule(path), name, quantized.device)
                assert torch.equal(layer.weight.view(torch.uint8), expected.weight.view(torch.uint8))
                assert torch.equal(layer.scale, expected.scale)
    in_full.activate(())
    residency.activate(())
    assert hash_weights(quantized) == before
    residency.activate(set_)
    assert hash_weights(quantized) == changed != before


LAYERS = {
    "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_out_0": (64, 64),
    "lora_unet_input_blocks_0_0": (32, 4, 3, 3),
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (32, 32),
    "lora_te2_text_model_encoder_layers_1_mlp_fc1": (256, 64),
}
NORMS = {
    "lora_unet_input_blocks_3_1_norm": (64,),
    "lora_te1_text_model_encoder_layers_0_layer_norm1": (32,),
    "lora_te2_text_model_encoder_layers_1_layer_norm2": (64,),
}
"""Layers of the UNet and of both text encoders."""


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_applied_removed_and_applied_again_to_the_bit(weights, tmp_path, kind):
    tensors = {
        f"{layer}.{role}": tensor
        for layer, shape in (NORMS if kind == "norm" else LAYERS).items()
        for role, tensor in draw_change(kind, shape).items()
    }
    residency = LoraResidency(weights.parts, "sdxl", 64 * MIB)
    loras = (name_lora(write_lora(tmp_path / "x.safetensors", tensors), 0.8, 0.6),)
    states = [hash_networks(weights)]
    for active in (loras, (), loras):
        residency.activate(active)
        states.append(hash_networks(weights))
    residency.activate(())
    before, applied, removed, again = states
    assert [folder for folder in before if applied[folder] == before[folder]] == ["vae"]
    assert (removed, again, residency.swaps) == (before, applied, 4)


def test_a_set_that_is_waited_for_is_not_dropped_for_the_next_one(weights, lora):
    class Observed(LoraResidency):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.is_held, self.is_released, self.prepared = Event(), Event(), []

        def _prepare(self, loras):
            self.is_held.set()
            assert self.is_released.wait(20)
            self.prepared.append([lora.name for lora in loras])
            return super()._prepare(loras)

        def _claim(self, loras):
            claimed = super()._claim(loras)
            if not self.is_released.is_set():
                for other in ("b", "c"):  # the queue changes while the device waits for the set
                    self.prepare((lora(other, seed=1),))
                self.prepare(loras)
                self.is_released.set()
            return claimed

    residency, before = Observed(weights.parts, "sdxl", MIB), hash_weights(weights)
    residency.prepare((lora("x", seed=5),))  # the thread is at work
    assert residency.is_held.wait(20)
    residency.prepare((lora("a"),))
    residency.activate((lora("a"),))
    assert hash_weights(weights) != before
    residency.activate((lora("c", seed=1),))
    residency.activate(())
    assert hash_weights(weights) == before
    assert residency.prepared == [["x"], ["a"], ["c"]]


def test_the_result_does_not_depend_on_the_order_or_on_what_was_prepared(weights, lora):
    residency = LoraResidency(weights.parts, "sdxl", 64 * MIB)
    a, b = lora("a"), lora("b", seed=1)
    residency.activate((a, b))
    together = hash_weights(weights)
    residency.prepare((b,))
    residency.prepare((b, a))
    residency.activate(())
    residency.activate((b, a))
    assert hash_weights(weights) == together
    residency.activate(())


def test_a_set_that_is_being_activated_is_not_dropped_for_the_next_one(weights, lora):
    residency, gate = LoraResidency(weights.parts, "sdxl", 64 * MIB), Event()
    a, b = (lora("a"),), (lora("b", seed=1),)
    before = hash_networks(weights)
    residency._thread.submit(gate.wait)
    residency.prepare(a)
    with ThreadPoolExecutor(1) as device:
        activated = device.submit(residency.activate, a)
        wait_until(lambda: residency._next is None)
        residency.prepare(b)
        gate.set()
        activated.result(LIMIT)
    assert residency.swaps == 1
    residency.activate(())
    assert hash_networks(weights) == before


def test_a_prepared_set_is_computed_once(weights, lora, monkeypatch):
    computed, compute = [], LoraResidency._prepare
    monkeypatch.setattr(
        LoraResidency, "_prepare", lambda self, loras: computed.append(loras) or compute(self, loras)
    )
    residency = LoraResidency(weights.parts, "sdxl", 64 * MIB)
    a, b = (lora("a"),), (lora("b", seed=1),)
    for step in (residency.prepare, residency.activate):
        step(a)
    for step in (residency.prepare, residency.prepare, residency.activate):
        step(b)
    residency.activate(())
    assert computed == [a, b]


def test_a_lora_changes_the_image_and_later_ones_have_the_same_pixels_as_before(pipeline, lora):
    before = draw(pipeline)
    both = draw(pipeline, lora())
    unet, text = draw(pipeline, lora(text=0.0)), draw(pipeline, lora(unet=0.0, text=1.0))
    images = [before, both, unet, text]
    assert len({image.tobytes() for image in images}) == 4
    assert (draw(pipeline) == before).all()
    assert (draw(pipeline, lora()) == both).all()
    assert (draw(pipeline, lora(unet=0.0)) == before).all()


def test_the_inpainting_unet_is_changed_like_the_other(weights, lora):
    residency = LoraResidency(weights.parts, "sdxl", 64 * MIB)
    modules = [part.part.module for part in weights.parts if part.part.folder == "unet"]
    before = [module.get_parameter("conv_in.weight").clone() for module in modules]
    residency.activate((lora(),))
    changes = [
        module.get_parameter("conv_in.weight") - old for module, old in zip(modules, before, strict=True)
    ]
    residency.activate(())
    torch.testing.assert_close(changes[1][:, :4], changes[0])
    assert not changes[1][:, 4:].any()


def make_nan(tensors):
    next(iter(tensors.values()))[0, 0] = float("nan")


def add_key(tensors):
    tensors |= {f"lora_unet_nowhere_{k}.lora_down.weight": torch.ones(1, 4) for k in range(5)}


def make_glora(tensors):
    tensors["lora_unet_input_blocks_0_0.a1.weight"] = torch.ones(1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"change": make_nan}, "contains NaN or infinity"),
        ({"change": add_key}, r"5 unmatched keys \(lora_unet_nowhere_0.lora_down.weight, .*, \.\.\.\)"),
        ({"change": make_glora}, "a GLoRA, which is not supported"),
        ({"layers": {next(iter(UNET)): (64, 65)}}, r"has the shape \(2, 65\), which does not fit a weight of \(64, 64\)"),
        ({"layers": {"lora_unet_input_blocks_3_1_transformer_blocks_0_attn2_to_k": (64, 768)}}, "is for Stable Diffusion 1, the model is SDXL"),
        ({"size": 1e19}, "their strengths make .* too large for float32"),
    ],
)  # fmt: skip
def test_what_cannot_be_applied_is_refused_and_changes_nothing(pipeline, weights, lora, options, said):
    good, before = draw(pipeline), hash_weights(weights)
    draw(pipeline, lora("good", seed=3))
    with pytest.raises(UnusableFile, match=f"LoRA .*: .*{said}"):
        draw(pipeline, lora("good", seed=3), lora("bad", **options))
    assert (draw(pipeline) == good).all()
    assert hash_weights(weights) == before


def test_a_file_that_changed_since_the_request_was_read_is_refused(pipeline, lora):
    old = lora()
    lora(seed=9)
    with pytest.raises(UnusableFile, match="has changed since the request was read"):
        draw(pipeline, old)


def test_a_swap_that_fails_halfway_is_undone(weights, lora, monkeypatch):
    residency, before, written = LoraResidency(weights.parts, "sdxl", 64 * MIB), hash_weights(weights), []
    write = PristineWeights.write

    def fail_at_third(self, key, value):
        written.append(key)
        if len(written) == 3:
            raise RuntimeError("out of memory")
        write(self, key, value)

    monkeypatch.setattr(PristineWeights, "write", fail_at_third)
    with pytest.raises(RuntimeError, match="out of memory"):
        residency.activate((lora(),))
    assert hash_weights(weights) == before
    residency.activate((lora(),))
    residency.activate(())
    assert hash_weights(weights) == before


def test_a_model_that_was_not_loaded_from_files_takes_no_lora(weights, lora):
    with pytest.raises(PipelineError, match="loaded from files"):
        Pipeline(replace(weights, parts=())).run(replace(PLAIN, loras=(lora(),)))


def test_weights_whose_file_was_replaced_are_not_restored_from_it(tmp_path, lora):
    file = tmp_path / "model.safetensors"
    file.write_bytes(DEMO.read_bytes())
    residency = LoraResidency(load_weights(file).parts, "sdxl", 0)
    residency.activate((lora(),))
    file.touch()
    for _ in range(2):  # it is not taken for restored
        with pytest.raises(PipelineError, match="has changed since it was loaded"):
            residency.activate(())
