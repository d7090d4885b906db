"""Telling a device that has failed for good from an operation that failed.

After an illegal memory access, a device-side assertion or a hardware error a CUDA context is unusable: "any further
CUDA work will return the same error. To continue using CUDA, the process must be terminated and relaunched" (CUDA
Runtime API, cudaError_t). Other errors, running out of memory among them, leave it usable.
"""

from collections.abc import Generator
from contextlib import contextmanager

import torch

from pipelines.errors import DeviceLost


def is_device_lost(device: torch.device) -> bool:
    """Return whether `device` fails to copy one number. An error for lack of memory does not count."""
    try:
        torch.zeros(1, device=device).cpu()
    except RuntimeError as error:
        return "out of memory" not in str(error)
    return False


def find_free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a device; None where it does not report them."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free


@contextmanager
def translate_device_errors(device: torch.device) -> Generator[None]:
    """Raise DeviceLost instead of a RuntimeError after which `device` is unusable.

    torch reports such errors as `torch.AcceleratorError`, as RuntimeError, or through a library that met the failed
    device first ("cuDNN error: ..."). So neither type nor text decides, but whether the device still works.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_device_lost(device):
            raise
        first_line = str(error).partition("\n")[0]
        raise DeviceLost(f"{device}: {first_line}") from error
