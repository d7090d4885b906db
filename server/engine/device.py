"""The device that the settings name: whether it is there, what it can do, and how much of its memory is used.

With `loading` the only module of the server that imports the torch half of pipelines.
"""

from typing import Literal

import torch

from pipelines.device import release_memory
from pipelines.speed import SpeedChoices, explain_unusable, explain_unused_kernels
from pipelines.stopwatch import Stopwatch
from pipelines.torch_build import describe_build as describe_build
from pipelines.torch_build import explain_missing_kernels
from server.config.settings import Settings
from server.config.toml import ConfigError, DeviceUnavailable


def resolve_device(name: str) -> str:
    """Return the device that a setting names; "auto" is a GPU if there is one, else the CPU.

    Raises:
        ConfigError: it is not a name of a device.
        DeviceUnavailable: there is no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"device = {name!r} is not auto, cpu, cuda, mps or a GPU's number like cuda:1"
        ) from None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise DeviceUnavailable(f"device = {name!r} is not available; cpu always is") from None
    return name


def check_device(name: str, settings: Settings) -> tuple[str, ...]:
    """Return which choices of `speed` gain nothing on a device, and why.

    Raises `ConfigError` if torch has no kernels for it, or it lacks a choice of `speed`.
    """
    device, choices = torch.device(name), read_choices(settings)
    problem = explain_missing_kernels() if device.type == "cuda" else None
    problem = problem or explain_unusable(device, choices)
    if problem is not None:
        raise ConfigError(problem)
    remarks: list[str] = []
    unused = explain_unused_kernels(device, choices)
    if unused is not None:
        remarks.append(f'speed.kernels = "auto": slower operations of torch are used, because {unused}')
    if settings.speed.memory != "auto" and not has_own_memory(device):
        reason = f"the plan saves nothing, because the device {name} has no memory of its own"
        remarks.append(f"speed.memory = {settings.speed.memory}: {reason}")
    return tuple(remarks)


def read_choices(settings: Settings) -> SpeedChoices:
    """Return how an operator wants the networks to run."""
    return SpeedChoices(**settings.speed.model_dump(exclude={"memory", "decoder", "step_cache"}))


def has_own_memory(device: torch.device) -> bool:
    """Return whether a device has memory of its own, which the CPU does not use."""
    return device.type == "cuda"


def read_memory(device: str) -> dict[str, int]:
    """Return the bytes of a GPU's memory that tensors use, and that torch has reserved; nothing for another device."""
    return _read_memory(device, "current")


def read_peak_memory(device: str) -> dict[str, int]:
    """Return the most of either since `reset_peak_memory`."""
    return _read_memory(device, "peak")


def reset_peak_memory(device: str) -> None:
    """Give back what a GPU has no use for, and begin to measure how much memory it needs at most."""
    if torch.device(device).type == "cuda":
        release_memory(torch.device(device))
        torch.cuda.reset_peak_memory_stats(device)


def _read_memory(device: str, statistic: Literal["current", "peak"]) -> dict[str, int]:
    if torch.device(device).type != "cuda":
        return {}
    stats = torch.cuda.memory_stats(device)
    kinds = {"used": "allocated_bytes", "reserved": "reserved_bytes"}
    return {kind: stats.get(f"{name}.all.{statistic}", 0) for kind, name in kinds.items()}


def open_stopwatch(settings: Settings) -> Stopwatch:
    """Return a stopwatch for the device of the settings."""
    return Stopwatch(torch.device(resolve_device(settings.device)))
