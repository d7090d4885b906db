"""Whether Triton's kernels run on a device.

torch's CUDA builds for Linux install Triton. It needs a GPU of compute capability 8.0 (its README, "Compatibility"),
and when it starts it compiles C code: a C compiler, Python's headers and a cache folder that it can write to.
"""

from functools import cache
from importlib.util import find_spec
from subprocess import SubprocessError

import torch

MIN_CAPABILITY = (8, 0)
START_ERRORS = (ImportError, AssertionError, OSError, RuntimeError, SubprocessError)
"""What Triton raises without a compiler, headers, libcuda or a writable cache."""


def has_triton(device: torch.device) -> bool:
    """Return whether Triton's kernels run on a device. The answer stays the same while the process runs."""
    return explain_missing_triton(device) is None


def can_launch(device: torch.device) -> bool:
    """Return whether kernels are launched on a device: where Triton runs, but not in code that torch compiles.

    torch's compiler fuses torch's own operations, and cannot see into launches.
    """
    return not torch.compiler.is_compiling() and has_triton(device)


@cache
def explain_missing_triton(device: torch.device) -> str | None:
    """Return why Triton's kernels do not run on a device and what to do, or None if they do."""
    if device.type != "cuda" or torch.version.cuda is None:
        return f"the kernels are for NVIDIA GPUs, and the device is {device}"
    if find_spec("triton") is None:
        return "Triton is not installed; torch's CUDA builds for Linux install it"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        needed, found = (".".join(map(str, version)) for version in (MIN_CAPABILITY, capability))
        return f"Triton needs a GPU of compute capability {needed} or later, and {device} has {found}"
    return explain_failed_start()


def explain_failed_start() -> str | None:
    """Return why Triton cannot start in this process, or None if it can."""
    try:
        from triton.runtime import driver

        driver.active.get_current_target()
    except START_ERRORS as error:
        return f"Triton cannot start (it needs a C compiler, Python's headers and a cache folder): {error}"
    return None
