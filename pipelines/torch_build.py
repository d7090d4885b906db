"""What this build of torch is for, and whether it has kernels for the GPUs of this machine.

A build has kernels for some architectures of GPUs: `sm_86` runs on compute capability 8.6 and later ones of 8.x. Code
for `compute_90` is compiled on any GPU from 9.0 on (CUDA C++ Programming Guide, "Binary Compatibility").
"""

import ctypes
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

Capability = tuple[int, int]
"""Compute capability of a GPU: major and minor version."""


def has_kernels(capability: Capability, architectures: Sequence[str]) -> bool:
    """Return whether a build for some architectures runs on GPUs of a compute capability."""
    major, minor = capability
    for architecture in architectures:
        kind, _, digits = architecture.partition("_")
        number = int("".join(filter(str.isdecimal, digits)) or 0)  # sm_90a and sm_100f have a letter
        built = divmod(number, 10)
        if kind == "compute" and built <= (major, minor):
            return True
        if kind == "sm" and built[0] == major and built[1] <= minor:
            return True
    return False


def describe_build() -> Iterator[str]:
    """Yield a line about torch's build, and one for each GPU that it sees."""
    version = torch.version.cuda
    kind = "without CUDA" if version is None else f"for CUDA {version}"
    count = torch.cuda.device_count() if version is not None else 0
    unseen = "" if version is None or count else "; it sees no GPU, or the driver is too old for it"
    yield f"torch: {torch.__version__}, {kind}{unseen}"
    for index in range(count):
        major, minor = torch.cuda.get_device_capability(index)
        yield f"GPU {index}: {torch.cuda.get_device_name(index)}, compute capability {major}.{minor}"


def explain_missing_kernels() -> str | None:
    """Return which GPU this build has no kernels for and what to do, or None."""
    if torch.version.cuda is None:
        return None
    architectures = torch.cuda.get_arch_list()
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if not has_kernels(capability, architectures):
            name, needed = torch.cuda.get_device_name(index), "sm_{}{}".format(*capability)
            built = ", ".join(architectures) or "none"
            return (
                f"GPU {index} ({name}) needs kernels for {needed}, and torch's build for CUDA {torch.version.cuda} "
                f"has {built}; install another build of torch, see docs/docker.md"
            )
    return None


def describe_device(device: torch.device) -> dict[str, str]:
    """Return the name of a device, and of a GPU its compute capability, CUDA's version and the driver's if known."""
    if device.type != "cuda":
        return {"name": read_processor() if device.type == "cpu" else "Apple GPU"}
    capability = "{}.{}".format(*torch.cuda.get_device_capability(device))
    facts = {"name": torch.cuda.get_device_name(device), "compute capability": capability}
    driver = read_driver_version()
    return facts | {"CUDA": torch.version.cuda or "unknown", "driver": driver or "unknown"}


def read_processor() -> str:
    """Return the name of the processor as Linux gives it, or what Python knows of it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine() or "CPU"


def read_driver_version(library: Any = None) -> str | None:  # noqa: ANN401 -- a C library, or a test's
    """Return the version of NVIDIA's driver, or None without one (NVML API, nvmlSystemGetDriverVersion)."""
    try:
        nvml = library or ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() != 0:
            return None
        text = ctypes.create_string_buffer(96)
        status = nvml.nvmlSystemGetDriverVersion(text, len(text))
        nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return None
    return text.value.decode("ascii", "replace") if status == 0 else None
