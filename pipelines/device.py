"""Telling what an error on a device means: a failed operation, too little memory, or a device that has failed for good.

After an illegal memory access, a device-side assertion or a hardware error a CUDA context is unusable: "any further
CUDA work will return the same error. To continue using CUDA, the process must be terminated and relaunched" (CUDA
Runtime API, cudaError_t). Other errors, running out of memory among them, leave it usable.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from errno import ENOMEM
from functools import partial
from traceback import clear_frames
from typing import Any

import torch

from pipelines.errors import DeviceLost, OutOfMemory
from pipelines.steps import Part, PartCoroutine, Result, Stage, Step, StepCoroutine
from pipelines.types import Progress

MEMORY_TEXTS = (
    "out of memory",  # CUDA, HIP and MPS, where the error is not a torch.OutOfMemoryError
    "not enough memory",  # DefaultCPUAllocator on Windows
    "can't allocate memory",  # DefaultCPUAllocator elsewhere
    "invalid buffer size",  # MPS, for one tensor that is larger than the device's limit
    "status_alloc_failed",  # cuDNN and cuBLAS
    "host_allocation_failed",  # cuDNN
)
"""What errors for lack of memory contain that have no type of their own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is not enough memory, on a device or for the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in MEMORY_TEXTS)


def is_device_lost(device: torch.device) -> bool:
    """Return whether `device` fails to copy one number. An error for lack of memory does not count."""
    try:
        torch.zeros(1, device=device).cpu()
    except RuntimeError as error:
        return not is_out_of_memory(error)
    return False


def find_free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a device; None where it does not report them."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free


def copies_in_background(device: torch.device) -> bool:
    """Return whether a copy to the CPU can go on after the call that begins it; torch then allocates pinned memory."""
    return device.type == "cuda"


@contextmanager
def translate_device_errors(device: torch.device) -> Generator[None]:
    """Raise OutOfMemory instead of an error for lack of memory, and DeviceLost if `device` is unusable after an error.

    torch reports the latter as `torch.AcceleratorError`, as RuntimeError, or through a library that met the failed
    device first ("cuDNN error: ..."). So neither type nor text decides, but whether the device still works.
    """
    try:
        with translate_memory_errors():
            yield
    except RuntimeError as error:
        if not is_device_lost(device):
            raise
        first_line = str(error).partition("\n")[0]
        raise DeviceLost(f"{device}: {first_line}") from error


@contextmanager
def translate_memory_errors() -> Generator[None]:
    """Raise OutOfMemory instead of an error for lack of memory; for work that does not use the device."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        clear_frames(error.__traceback__)  # they hold the tensors that took the memory
        raise OutOfMemory from error


def release_memory(device: torch.device) -> None:
    """Return the memory that torch keeps for later use to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def make_step(device: torch.device, progress: Progress, function: Callable[[], object], stage: Stage) -> Step:
    """Return a step that is taken alone and calls a function, whose errors are translated.

    If memory runs out, it is called again.
    """
    return Step(progress, partial(_call, device), function, stage=stage)


def compute_parts(
    device: torch.device,
    parts: PartCoroutine[Result],
    show_progress: Callable[[Part], Progress],
    stage: Stage,
) -> StepCoroutine[Result]:
    """Compute each part of an image in a step of its own."""
    computed: Any = None
    try:
        while True:
            part = parts.send(computed)
            computed = yield make_step(device, show_progress(part), part.compute, stage)
    except StopIteration as stop:
        return stop.value


def _call(device: torch.device, functions: Sequence[Callable[[], Any]]) -> list[Any]:
    with torch.inference_mode(), translate_device_errors(device):
        return [function() for function in functions]
