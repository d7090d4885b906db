"""Where Triton's kernels run, and what is said where they do not."""

import pytest
import torch

from pipelines.kernels import triton_support
from pipelines.kernels.triton_support import explain_failed_start, explain_missing_triton, has_triton

GPU = torch.device("cuda:0")


@pytest.fixture(autouse=True)
def _forget_answers():
    explain_missing_triton.cache_clear()
    yield
    explain_missing_triton.cache_clear()


@pytest.fixture
def machine(monkeypatch):
    """Pretend that there is a GPU, Triton, and what Triton needs to start."""

    def describe(capability=(9, 0), *, installed=True, starts=True):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(triton_support, "find_spec", lambda _: object() if installed else None)
        monkeypatch.setattr(
            triton_support, "explain_failed_start", lambda: None if starts else "no C compiler"
        )

    return describe


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (12, 0)])
def test_a_gpu_with_triton_has_it(machine, capability):
    machine(capability)
    assert has_triton(GPU)


@pytest.mark.parametrize("device", ["cpu", "meta", "mps"])
def test_other_devices_do_not(machine, device):
    machine()
    assert not has_triton(torch.device(device))
    assert device in str(explain_missing_triton(torch.device(device)))


def test_a_build_of_torch_without_cuda_does_not(machine, monkeypatch):
    machine()
    monkeypatch.setattr(torch.version, "cuda", None)  # ROCm, whose devices are called cuda as well
    assert not has_triton(GPU)


def test_an_environment_without_triton_does_not(machine):
    machine(installed=False)
    assert "not installed" in str(explain_missing_triton(GPU))


@pytest.mark.parametrize("capability", [(6, 1), (7, 5)])
def test_an_old_gpu_does_not(machine, capability):
    machine(capability)
    assert "8.0 or later, and cuda:0 has {}.{}".format(*capability) in str(explain_missing_triton(GPU))


def test_a_machine_on_which_triton_cannot_start_does_not(machine):
    machine(starts=False)
    assert explain_missing_triton(GPU) == "no C compiler"
    assert not has_triton(GPU)


def test_the_answer_is_found_once(machine):
    machine()
    assert has_triton(GPU)
    machine(installed=False)
    assert has_triton(GPU)


def test_a_start_without_a_driver_is_explained():
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        assert explain_failed_start() is None
    else:
        assert "active driver" in str(explain_failed_start())
