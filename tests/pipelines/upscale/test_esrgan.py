"""ESRGAN-family files: every key format, and files that are refused."""

import json
import struct
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from upscaler_files import random_network, small_config

from pipelines.errors import WeightsError
from pipelines.upscale.esrgan import load_rrdbnet, plan_rrdbnet
from pipelines.upscale.rrdbnet import RrdbConfig, RrdbNet
from pipelines.weights.header import read_header

CPU = torch.device("cpu")
# keys of the layers outside the blocks, by the number of doublings
LISTED = {
    0: {"conv_hr": "model.2", "conv_last": "model.4"},
    1: {"conv_up1": "model.3", "conv_hr": "model.5", "conv_last": "model.7"},
    2: {"conv_up1": "model.3", "conv_up2": "model.6", "conv_hr": "model.8", "conv_last": "model.10"},
    3: {
        "conv_up1": "model.3",
        "conv_up2": "model.6",
        "conv_up3": "model.9",
        "conv_hr": "model.11",
        "conv_last": "model.13",
    },
}
RELEASED = {
    "conv_first": "conv_first",
    "conv_body": "trunk_conv",
    "conv_up1": "upconv1",
    "conv_up2": "upconv2",
    "conv_hr": "HRconv",
    "conv_last": "conv_last",
}


def to_listed(weights, blocks=2, doublings=2):
    outside = LISTED[doublings] | {"conv_first": "model.0", "conv_body": f"model.1.sub.{blocks}"}
    return rename_keys(weights, outside, "model.1.sub.{}.RDB{}.conv{}.0")


def to_released(weights):
    return rename_keys(weights, RELEASED, "RRDB_trunk.{}.RDB{}.conv{}")


def rename_keys(weights, outside, inside):
    """The weights under other keys."""
    keys = dict(outside)
    for block in range(2):
        for dense in (1, 2, 3):
            for conv in (1, 2, 3, 4, 5):
                keys[f"body.{block}.rdb{dense}.conv{conv}"] = inside.format(block, dense, conv)
    layers = {name: name.rpartition(".") for name in weights}
    return {f"{keys[layer]}.{kind}": weights[name] for name, (layer, _, kind) in layers.items()}


def add_prefix(prefix, weights):
    return {prefix + name: weight for name, weight in weights.items()}


def save(path, weights):
    save_file({name: weight.contiguous() for name, weight in weights.items()}, path)
    return path


@pytest.fixture(scope="module")
def network():
    return random_network()


@pytest.fixture(scope="module")
def weights(network):
    return network.state_dict()


@pytest.mark.parametrize(
    "to_format",
    [
        dict,
        to_released,
        to_listed,
        lambda weights: add_prefix("params_ema.", weights),
        lambda weights: add_prefix("params.", weights),
        lambda weights: add_prefix("params.", to_listed(weights)),
        # a trainer's file with both: the averaged weights are used
        lambda weights: (
            add_prefix("params_ema.", weights)
            | add_prefix("params.", {name: 2 * weight for name, weight in weights.items()})
        ),
    ],
    ids=["ours", "released", "listed", "averaged", "last", "listed last", "both"],
)
def test_every_key_format_loads_the_same_network(tmp_path, network, weights, to_format):
    loaded: Any = load_rrdbnet(save(tmp_path / "up.safetensors", to_format(weights)), CPU, torch.float32)
    image = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(1))
    loaded.to(memory_format=torch.contiguous_format)  # another memory format would sum in another order
    assert torch.equal(loaded(image), network(image))


@pytest.mark.parametrize(
    ("doublings", "fold"), [(0, 1), (1, 1), (2, 1), (3, 1), (2, 2), (2, 4)], ids=lambda number: str(number)
)
@pytest.mark.parametrize("is_listed", [True, False], ids=["listed", "ours"])
def test_the_scale_is_detected_from_the_keys_and_the_first_layer(tmp_path, doublings, fold, is_listed):
    config = small_config(doublings=doublings, fold=fold)
    weights = RrdbNet(config).state_dict()
    weights = to_listed(weights, doublings=doublings) if is_listed else weights
    plan = plan_rrdbnet(read_header(save(tmp_path / "up.safetensors", weights)))
    assert plan.config == config
    assert {weight.mapped.key for weight in plan.weights.values()} == set(weights)


def test_the_anime_models_config_and_parameter_count(tmp_path):
    with torch.device("meta"):
        sizes = {
            name: tuple(weight.shape)
            for name, weight in RrdbNet(RrdbConfig(64, 32, 6, 2, 1)).named_parameters()
        }
    config = plan_rrdbnet(read_header(write_zeros(tmp_path / "anime.safetensors", sizes))).config
    assert config == RrdbConfig(features=64, growth=32, blocks=6, doublings=2, fold=1)
    # RealESRGAN_x4plus_anime_6B's count, according to spandrel
    assert sum(torch.Size(size).numel() for size in sizes.values()) == 4_467_779


def write_zeros(path, sizes, dtype="F16", hole=0):
    """A file of zeros with these shapes; a hole before the first tensor violates the format."""
    header, start = {}, hole
    for key, size in sizes.items():
        stop = start + 2 * torch.Size(size).numel()
        header[key], start = {"dtype": dtype, "shape": size, "data_offsets": [start, stop]}, stop
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(start))
    return path


def replace_tensors(**changes):
    """Replace tensors, or remove them where None is passed; `__` stands for a dot."""
    replaced = {name.replace("__", "."): weight for name, weight in changes.items()}
    return lambda weights: {
        name: weight for name, weight in (weights | replaced).items() if weight is not None
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (replace_tensors(conv_first__weight=None), "not an ESRGAN-family upscaler: no conv_first.weight"),
        (lambda weights: {"layers.0.weight": torch.zeros(1)}, "not an ESRGAN-family upscaler: no conv_first"),
        (lambda weights: {}, "not an ESRGAN-family upscaler: no conv_first.weight"),
        # SwinIR's files start with the same key
        (
            lambda weights: {"conv_first.weight": torch.zeros(8, 3, 3, 3), "layers.0.norm": torch.zeros(8)},
            "not an ESRGAN-family upscaler: no body.0.rdb1.conv1.weight",
        ),
        (replace_tensors(conv_first__weight=torch.zeros(8)), r"conv_first.weight has the shape \(8,\)"),
        (
            replace_tensors(conv_first__weight=torch.zeros(0, 3, 3, 3)),
            r"conv_first.weight has the shape \(0, 3",
        ),
        (
            replace_tensors(conv_first__weight=torch.zeros(8, 4, 3, 3)),
            "takes 4 channels; 3, 12 and 48 are supported",
        ),
        (replace_tensors(conv_first__bias=None), r"1 missing \(conv_first.bias\)"),
        (replace_tensors(body__1__rdb2__conv3__weight=None), r"1 missing \(body.1.rdb2.conv3.weight"),
        (replace_tensors(body__1__rdb1__conv1__weight=None), r"1 missing \(body.1.rdb1.conv1.weight"),
        (replace_tensors(conv_up1__weight=None), r"1 missing \(conv_up1.weight"),
        (replace_tensors(conv_last__weight=None), r"1 missing \(conv_last.weight"),
        (
            replace_tensors(body__1__rdb2__conv3__weight=torch.zeros(4, 15, 3, 3)),
            r"conv3.weight has the shape \(4, 15",
        ),
        (replace_tensors(conv_last__weight=torch.zeros(1, 8, 3, 3)), r"\(1, 8, 3, 3\), not \(3, 8, 3, 3\)"),
        (
            replace_tensors(conv_hr__weight=torch.zeros(8, 8, 1, 1)),
            r"conv_hr.weight has the shape \(8, 8, 1, 1\)",
        ),
        (
            replace_tensors(conv_hr__bias=torch.zeros(8, dtype=torch.int32)),
            "conv_hr.bias holds I32, as quantized files do",
        ),
        (
            replace_tensors(body__0__rdb1__conv1x1__weight=torch.zeros(4, 8, 1, 1)),
            r"1 unexpected \(body.0.rdb1.conv1x1.weight",
        ),
        (
            replace_tensors(conv_up9__weight=torch.zeros(8, 8, 3, 3)),
            "doubles 9 times; scales of 1 to 8 are supported",
        ),
        (
            replace_tensors(
                conv_first__weight=torch.zeros(8, 48, 3, 3), conv_up2__weight=None, conv_up2__bias=None
            ),
            "1 to 8",
        ),
        (
            lambda weights: replace_tensors(model__6__bias=None)(to_listed(weights)),
            r"1 missing \(model.6.bias",
        ),
        (
            lambda weights: replace_tensors(model__10__weight=None)(to_listed(weights)),
            r"1 missing \(model.10.weight",
        ),
        (
            lambda weights: replace_tensors(model__1__sub__2__weight=None)(to_listed(weights)),
            r"1 missing \(model.1.sub.2.weight",
        ),
        (
            lambda weights: add_prefix("params.", replace_tensors(conv_hr__bias=None)(weights)),
            r"1 missing \(params.conv_hr.bias",
        ),
        (
            lambda weights: add_prefix("params_ema.", weights) | {"head": torch.zeros(1)},
            r"1 unexpected \(head",
        ),
    ],
)
def test_another_file_is_refused_with_the_tensors_name(tmp_path, weights, change, reason):
    path = save(tmp_path / "up.safetensors", change(weights))
    with pytest.raises(WeightsError, match=reason) as caught:
        load_rrdbnet(path, CPU, torch.float32)
    assert str(caught.value).startswith("up.safetensors: ")


def test_pickles_are_refused(tmp_path, weights):
    path = tmp_path / "RealESRGAN_x4plus.pth"
    torch.save({"params_ema": weights}, path)
    with pytest.raises(WeightsError, match=r"RealESRGAN_x4plus\.pth: a pickle can run code"):
        load_rrdbnet(path, CPU, torch.float32)
    with pytest.raises(WeightsError, match="a pickle can run code"):
        load_rrdbnet(path.rename(tmp_path / "renamed.safetensors"), CPU, torch.float32)


def test_a_header_that_violates_the_format_is_refused(tmp_path, weights):
    sizes = {name: list(weight.shape) for name, weight in weights.items()}
    path = write_zeros(tmp_path / "up.safetensors", sizes, hole=2)
    with pytest.raises(WeightsError, match=r"up\.safetensors: a damaged header: tensor .* follows a gap"):
        load_rrdbnet(path, CPU, torch.float32)


def test_weights_are_converted_to_the_requested_dtype(tmp_path, weights):
    half = {name: weight.half() for name, weight in weights.items()}
    path = save(tmp_path / "up.safetensors", half)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        loaded = load_rrdbnet(path, CPU, dtype)
        assert {weight.dtype for weight in loaded.parameters()} == {dtype}
        torch.testing.assert_close(
            loaded.state_dict(), {name: weight.to(dtype) for name, weight in half.items()}
        )
    assert not any(weight.requires_grad for weight in loaded.parameters())
    assert not loaded.training


def test_an_upscaler_that_is_not_finite_or_quantized_is_refused(tmp_path, weights):
    for tensor, reason in (
        (torch.full((8,), torch.nan), "conv_hr.bias contains NaN or infinity"),
        (torch.zeros(8, dtype=torch.int8), "conv_hr.bias holds I8"),
    ):
        path = save(tmp_path / "up.safetensors", weights | {"conv_hr.bias": tensor})
        with pytest.raises(WeightsError, match=reason):
            load_rrdbnet(path, CPU, torch.float32)


def test_an_upscaler_in_scaled_8_bit_floats_is_loaded(tmp_path, weights):
    key = "conv_hr.weight"
    scale = weights[key].abs().max() / 448
    narrow = (weights[key] / scale).to(torch.float8_e4m3fn)
    path = save(tmp_path / "up.safetensors", weights | {key: narrow, "conv_hr.weight_scale": scale})
    loaded = load_rrdbnet(path, CPU, torch.float32).state_dict()
    assert torch.equal(loaded[key], narrow.float() * scale)
