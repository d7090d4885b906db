"""Telling a lost device from a failed operation. A sticky CUDA error is imitated by a failing `torch.zeros`."""

import pytest
import torch

from pipelines.device import is_device_lost, translate_device_errors
from pipelines.errors import Cancelled, DeviceLost

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
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        ValueError("unrelated"),
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
    ],
)
def test_running_out_of_memory_is_not_device_lost(fail_device, error):
    fail_device(error)
    assert not is_device_lost(CPU)
    with pytest.raises(type(error)), translate_device_errors(CPU):
        raise error


def test_a_working_device_is_not_lost():
    assert not is_device_lost(CPU)
