"""Tiny decoders from files of every layout, and files that are something else."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipelines.errors import WeightsError
from pipelines.image.tiny_decoder import (
    TinyVae,
    choose_decoder_dtype,
    load_tiny_decoder,
    make_preview_decoder,
    plan_tiny_decoder,
)
from pipelines.weights.networks import build_tiny_decoder

CPU = torch.device("cpu")
LATENTS = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def weights():
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(tuple(tensor.shape), generator=generator) / max(1.0, tensor[0].numel()) ** 0.5
        for name, tensor in build_tiny_decoder(8).state_dict().items()
    }


def to_diffusers(weights):
    encoder = {"encoder.layers.0.weight": torch.zeros(8, 3, 3, 3)}
    return encoder | {f"decoder.{name}": weight for name, weight in weights.items()}


def to_list(weights, prefix=""):
    return {
        f"{prefix}{int(number) + 1}.{rest}": weight
        for name, weight in weights.items()
        for number, _, rest in [name.removeprefix("layers.").partition(".")]
    }


def save(path, tensors):
    save_file(tensors, path)
    return path


def load_preview_decoder(path):
    return make_preview_decoder(load_tiny_decoder(path, CPU))


@pytest.fixture
def expected(weights):
    """The preview as the network's definition has it."""
    module = build_tiny_decoder(8).to_empty(device="cpu")
    module.load_state_dict(weights)
    image = module(LATENTS[None])[0]
    small = image.unflatten(1, (24, 2)).unflatten(3, (20, 2)).mean((2, 4))
    return ((small + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)


@pytest.mark.parametrize(
    "to_layout",
    [to_diffusers, to_list, lambda weights: to_list(weights, "taesd_decoder."), lambda weights: to_list(weights, "decoder.")],
    ids=["diffusers", "its own", "in a VAE file", "next to an encoder"],
)  # fmt: skip
def test_every_layout_gives_previews_of_half_the_size(tmp_path, weights, expected, to_layout):
    decode = load_preview_decoder(save(tmp_path / "tiny.safetensors", to_layout(weights)))
    preview = decode(LATENTS)
    assert preview.shape == (24, 20, 3)
    assert (preview.int() - expected.int()).abs().max() <= 1
    assert preview.float().std() > 5


def test_a_diffusers_folder_is_read(tmp_path, weights, expected):
    folder = tmp_path / "taesdxl"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny"}))
    save(folder / "diffusion_pytorch_model.safetensors", to_diffusers(weights))
    assert (load_preview_decoder(folder)(LATENTS).int() - expected.int()).abs().max() <= 1


def drop_last(weights):
    return {name: weight for name, weight in to_list(weights).items() if name != "19.bias"}


def with_channels(weights):
    return to_list(weights) | {"1.weight": torch.zeros(8, 16, 3, 3)}


def spoil(weights):
    return to_list(weights) | {"1.bias": torch.full((8,), float("nan"))}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda _: {"conv_first.weight": torch.zeros(8, 3, 3, 3)}, r"not a TAESD-type decoder: no decoder\.layers\.0\.weight"),
        (lambda _: {"1.weight": torch.zeros(8, 4)}, r"not a TAESD-type decoder: its first layer has the shape \(8, 4\)"),
        (with_channels, "it decodes latents with 16 channels; the model's have 4"),
        (drop_last, r"1 missing \(19\.bias\)"),
        (lambda weights: to_list(weights) | {"20.weight": torch.zeros(1)}, r"1 unexpected \(20\.weight\)"),
    ],
    ids=["another network", "another shape", "other latents", "incomplete", "more"],
)  # fmt: skip
def test_something_else_is_refused_from_its_header(tmp_path, weights, change, reason):
    path = save(tmp_path / "tiny.safetensors", change(weights))
    with pytest.raises(WeightsError, match=rf"tiny\.safetensors: {reason}"):
        plan_tiny_decoder(path)


def test_weights_that_are_not_finite_are_refused(tmp_path, weights):
    path = save(tmp_path / "tiny.safetensors", spoil(weights))
    with pytest.raises(WeightsError, match=r"1\.bias contains NaN"):
        load_tiny_decoder(path, CPU)


def test_a_pickle_is_refused_by_name(tmp_path):
    path = tmp_path / "taesd_decoder.pth"
    path.write_bytes(b"PK")
    with pytest.raises(WeightsError, match=r"taesd_decoder\.pth"):
        plan_tiny_decoder(path)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("cuda", torch.float16), ("mps", torch.float32), ("cpu", torch.float32)]
)
def test_previews_are_decoded_in_half_precision_on_cuda(kind, dtype):
    assert choose_decoder_dtype(torch.device(kind)) is dtype


def test_images_are_encoded_by_the_vae_and_decoded_by_the_tiny_decoder(tmp_path, weights, demo):
    decoder = load_tiny_decoder(save(tmp_path / "tiny.safetensors", to_list(weights)), CPU)
    vae = TinyVae(demo.weights.vae, decoder, 0.5)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(vae.encode(image), demo.weights.vae.encode(image))
        expected = decoder(LATENTS[None])
        torch.testing.assert_close(vae.decode(LATENTS[None] / 0.5), expected)
    assert expected.shape == (1, 3, 48, 40)


def test_a_tiny_decoder_runs_in_float32_after_an_overflow(weights):
    decoder = build_tiny_decoder(8).to_empty(device="cpu")
    decoder.load_state_dict(weights)
    recording: Any = RecordingVae()
    vae = TinyVae(recording, decoder.half(), 1.0)
    dtypes = []
    for dtype in (torch.float32, torch.bfloat16):
        vae.to(dtype)
        dtypes.append(next(decoder.parameters()).dtype)
    assert dtypes == [torch.float32, torch.float16]
    assert recording.dtypes == [torch.float32, torch.bfloat16]


class RecordingVae:
    def __init__(self):
        self.dtypes = []

    def to(self, dtype):
        self.dtypes.append(dtype)
