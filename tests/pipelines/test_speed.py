from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from pipelines import speed as module
from pipelines.errors import UnusableSetting
from pipelines.speed import (
    Speed,
    SpeedChoices,
    choose_speed,
    explain_unusable,
    explain_unused_kernels,
)

COMPILED = ["compile_vae", "compile_unet"]
NAMES = [field.name for field in fields(Speed) if field.type is bool and field.name not in COMPILED]
"""The switches that are on by default on CUDA."""
GPU, CPU = torch.device("cuda"), torch.device("cpu")


def choose(device, **choices):
    return choose_speed(torch.device(device), SpeedChoices(**choices))


@pytest.mark.parametrize(
    ("device", "used"), [("cuda", True), ("cuda:1", True), ("cpu", False), ("mps", False)]
)
def test_everything_but_compilation_is_used_on_cuda_and_nothing_elsewhere(device, used):
    assert choose(device) == Speed(*[used] * len(NAMES))


@pytest.mark.parametrize("name", NAMES)
def test_each_can_be_turned_off(name):
    speed = choose("cuda", **{name: "off"})
    off = {name, "kernels"} if name == "channels_last" else {name}  # the kernels need channels last
    assert {each for each in NAMES if not getattr(speed, each)} == off


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_compilation_is_used_where_it_is_turned_on(device, name):
    choices = "auto", "on", "off"
    assert [getattr(choose(device, **{name: choice}), name) for choice in choices] == [False, True, False]


def test_layouts_can_be_turned_on_elsewhere_but_not_what_only_cuda_has():
    assert choose("cpu", **dict.fromkeys(NAMES, "on")) == Speed(channels_last=True, fused_projections=True)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("weights", ["int8", "float8"])
def test_quantized_weights_combine_with_all_others_and_are_off_by_default(device, weights):
    assert choose(device).weights == "full"
    assert choose(device, weights=weights) == replace(choose(device), weights=weights)


@pytest.mark.parametrize(
    ("name", "value", "others"),
    [
        ("weights", "int8", '"full"'),
        ("fused_projections", "on", '"auto" or "off"'),
        ("compile_unet", "on", '"auto" or "off"'),
        ("graphs", "on", '"auto" or "off"'),
    ],
)
def test_what_needs_the_weights_on_the_device_is_an_error_where_they_are_streamed(name, value, others):
    choices: Any = {name: value}
    reason = r"it needs all of the UNet on the GPU, but the memory plan copies 1\.5 GB in each pass"
    advice = f"set it to {others}, or raise speed.memory"
    with pytest.raises(UnusableSetting, match=rf'^speed\.{name} = "{value}": {reason}; {advice} '):
        choose_speed(GPU, SpeedChoices(**choices), 1_500_000_000)
    assert getattr(choose("cuda", **choices), name) in (value, True)


def test_what_is_chosen_automatically_gives_way_where_weights_are_streamed():
    assert choose_speed(GPU, SpeedChoices(), 1) == Speed(channels_last=True, kernels=True)
    assert choose_speed(GPU, SpeedChoices(channels_last="on", kernels="on"), 1).kernels


@pytest.fixture
def reasons(monkeypatch):
    """Set why Triton and formats are missing on any device."""

    def set_reasons(triton=None, formats=None):
        monkeypatch.setattr(module, "explain_missing_triton", lambda _: triton)
        monkeypatch.setattr(module, "explain_missing_format", lambda *_: formats)

    return set_reasons


@pytest.mark.parametrize(
    ("device", "choices", "expected"),
    [
        (GPU, {}, None),
        (CPU, {}, None),
        (GPU, {"kernels": "on"}, 'speed.kernels = "on": no compiler; set it to "auto" or "off"'),
        (CPU, {"kernels": "on"}, 'speed.kernels = "on": no compiler; set it to "auto" or "off"'),
        (GPU, {"kernels": "off"}, None),
        (CPU, {"weights": "int8"}, 'speed.weights = "int8": too old; set it to "full"'),
        (GPU, {"weights": "float8"}, 'speed.weights = "float8": too old; set it to "full" or "int8"'),
    ],
)
def test_an_explicit_choice_that_a_device_lacks_is_explained(reasons, device, choices, expected):
    reasons("no compiler", "too old")
    assert explain_unusable(device, SpeedChoices(**choices)) == expected
    reasons()
    assert explain_unusable(device, SpeedChoices(**choices)) is None or device == CPU


@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_graphs_that_are_on_need_cuda(kind):
    reason = f"graphs are for GPUs with CUDA, and the device is {kind}"
    expected = f'speed.graphs = "on": {reason}; set it to "auto" or "off"'
    assert explain_unusable(torch.device(kind), SpeedChoices(graphs="on")) == expected
    assert explain_unusable(torch.device(kind), SpeedChoices(graphs="auto")) is None
    assert explain_unusable(GPU, SpeedChoices(graphs="on")) is None


@pytest.mark.parametrize("name", NAMES)
def test_what_is_on_is_used_or_explained(reasons, name):
    reasons("no compiler")
    choices: Any = {name: "on"}
    is_usable = explain_unusable(CPU, SpeedChoices(**choices)) is None
    assert getattr(choose("cpu", **choices), name) is is_usable


def test_kernels_that_are_on_need_channels_last(reasons):
    reasons()
    choices = SpeedChoices(kernels="on", channels_last="off")
    assert "speed.channels_last" in str(explain_unusable(GPU, choices))


@pytest.mark.parametrize(
    ("device", "choices", "expected"),
    [
        (GPU, {}, "no compiler"),
        (GPU, {"kernels": "off"}, None),
        (GPU, {"channels_last": "off"}, None),
        (CPU, {}, None),
    ],
)
def test_kernels_that_auto_chooses_in_vain_are_explained(reasons, device, choices, expected):
    reasons("no compiler")
    assert explain_unused_kernels(device, SpeedChoices(**choices)) == expected
    reasons()
    assert explain_unused_kernels(device, SpeedChoices(**choices)) is None
