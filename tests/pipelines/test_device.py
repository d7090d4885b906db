"""Telling a lost device from a failed operation. A sticky CUDA error is imitated by a failing `torch.zeros`."""

import weakref
from errno import ENOENT, ENOMEM

import pytest
import torch
from faults import run_out_of_cpu_memory, run_out_of_memory

from pipelines.device import (
    copies_in_background,
    find_free_memory,
    is_device_lost,
    is_out_of_memory,
    release_memory,
    translate_device_errors,
)
from pipelines.errors import Cancelled, DeviceLost, OutOfMemory

CPU = torch.device("cpu")
ILLEGAL = (
    "CUDA error: an illegal memory access was encountered\nCompile with `TORCH_USE_CUDA_DSA` for details."
)
AcceleratorError = getattr(torch, "AcceleratorError", RuntimeError)  # added in torch 2.8


@pytest.fixture
def fail_device(monkeypatch):
    """Make each further use of a device raise an error."""

    def fail_device(error):
        def zeros(*_, **__):
            raise error

        monkeypatch.setattr(torch, "zeros", zeros)

    return fail_device


LOST = [
    AcceleratorError(ILLEGAL),
    RuntimeError(ILLEGAL),
    RuntimeError("HIP error: unspecified launch failure"),
    RuntimeError("CUDA error: device-side assert triggered"),
]


@pytest.mark.parametrize("error", LOST)
def test_an_error_that_the_device_repeats_is_device_lost(fail_device, error):
    fail_device(error)
    with pytest.raises(DeviceLost) as caught, translate_device_errors(CPU):
        raise error
    assert str(caught.value) == f"cpu: {str(error).splitlines()[0]}"
    assert caught.value.__cause__ is error


def test_a_library_s_error_on_a_lost_device_is_device_lost(fail_device):
    fail_device(AcceleratorError(ILLEGAL))
    with pytest.raises(DeviceLost), translate_device_errors(CPU):
        raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")


@pytest.mark.parametrize(
    "error",
    [
        AcceleratorError("CUDA error: invalid configuration argument"),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        ValueError("unrelated"),
        FileNotFoundError(ENOENT, "No such file or directory"),
        Cancelled("the client no longer waits for this job"),
    ],
)
def test_an_error_that_the_device_survives_is_passed_on(error):
    with pytest.raises(type(error)) as caught, translate_device_errors(CPU):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."),
        AcceleratorError("CUDA error: out of memory"),
        RuntimeError("HIP out of memory. Tried to allocate 2.00 MiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB)"),
        RuntimeError("Invalid buffer size: 20.00 GB"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes."),
        MemoryError(),
        OSError(ENOMEM, "Cannot allocate memory"),
    ],
)
def test_running_out_of_memory_is_not_device_lost(fail_device, error):
    if isinstance(error, RuntimeError):
        fail_device(error)
    assert not is_device_lost(CPU)
    with pytest.raises(OutOfMemory, match=r"^not enough memory$") as caught, translate_device_errors(CPU):
        raise error
    assert caught.value.__cause__ is error


def test_the_cpu_s_own_error_is_recognized():
    with pytest.raises(RuntimeError) as caught:
        run_out_of_cpu_memory(None)
    assert is_out_of_memory(caught.value)


def test_what_took_the_memory_is_freed_while_the_error_is_kept():
    references = []

    def evaluate():
        activations = torch.zeros(8)
        references.append(weakref.ref(activations))
        run_out_of_memory(None)

    with pytest.raises(OutOfMemory) as caught, translate_device_errors(CPU):
        evaluate()
    assert caught.value.__cause__ is not None
    assert references[0]() is None


def test_a_working_device_is_not_lost():
    assert not is_device_lost(CPU)


@pytest.mark.parametrize(("kind", "expected"), [("cuda", 5), ("mps", None), ("cpu", None)])
def test_only_cuda_reports_its_free_memory(monkeypatch, kind, expected):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 8))
    assert find_free_memory(torch.device(kind)) == expected


@pytest.mark.parametrize("kind", ["cuda", "mps", "cpu"])
def test_the_memory_of_a_gpu_is_released(monkeypatch, kind):
    released = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append("cuda"))
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: released.append("mps"))
    release_memory(torch.device(kind))
    assert released == ([] if kind == "cpu" else [kind])


@pytest.mark.parametrize(("kind", "expected"), [("cuda", True), ("mps", False), ("cpu", False)])
def test_only_cuda_copies_in_the_background(kind, expected):
    assert copies_in_background(torch.device(kind)) is expected
