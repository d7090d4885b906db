from dataclasses import fields

import pytest
import torch

from pipelines.speed import Speed, SpeedChoices, choose_speed

COMPILED = "compile_vae"
NAMES = [field.name for field in fields(Speed) if field.name != COMPILED]


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


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_compilation_is_used_where_it_is_turned_on(device):
    assert [choose(device, compile_vae=choice).compile_vae for choice in ("auto", "on", "off")] == [
        False,
        True,
        False,
    ]


def test_layouts_can_be_turned_on_elsewhere_but_not_what_only_cuda_has():
    assert choose("cpu", **dict.fromkeys(NAMES, "on")) == Speed(channels_last=True, fused_projections=True)
