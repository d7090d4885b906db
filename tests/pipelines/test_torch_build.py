"""Which GPUs a build of torch has kernels for."""

import pytest
import torch

from pipelines import torch_build
from pipelines.torch_build import describe_build, explain_missing_kernels, has_kernels

CUDA_126 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CUDA_130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize(
    ("capability", "with_126", "with_130"),
    [
        ((6, 1), True, False),  # GTX 10xx
        ((7, 0), True, False),  # V100
        ((7, 5), True, True),  # RTX 20xx
        ((8, 6), True, True),  # RTX 30xx
        ((8, 9), True, True),  # RTX 40xx, with the kernels for 8.6
        ((9, 0), True, True),  # H100
        ((10, 0), False, True),  # B200
        ((12, 0), False, True),  # RTX 50xx
        ((13, 0), False, True),  # compiled from compute_120
    ],
)
def test_a_build_covers_the_gpus_it_was_made_for(capability, with_126, with_130):
    assert has_kernels(capability, CUDA_126) is with_126
    assert has_kernels(capability, CUDA_130) is with_130


def test_architectures_with_a_letter_are_read():
    assert has_kernels((9, 0), ["sm_90a"])
    assert not has_kernels((12, 0), ["sm_100f", "sm_90a", ""])


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that there is one GPU, and a build for CUDA 12.6."""

    def pretend(capability):
        monkeypatch.setattr(torch_build.torch.version, "cuda", "12.6")
        answers = {
            "device_count": 1,
            "get_device_capability": capability,
            "get_device_name": "RTX",
            "get_arch_list": CUDA_126,
        }
        for name, value in answers.items():
            monkeypatch.setattr(torch_build.torch.cuda, name, lambda *_, value=value: value)

    return pretend


def test_a_gpu_without_kernels_is_explained(gpu):
    gpu((12, 0))
    message = explain_missing_kernels()
    assert message is not None
    assert message.startswith(
        "GPU 0 (RTX) needs kernels for sm_120, and torch's build for CUDA 12.6 has sm_50, "
    )
    gpu((8, 9))
    assert explain_missing_kernels() is None


def test_the_build_and_each_gpu_have_a_line(gpu):
    gpu((8, 9))
    assert list(describe_build()) == [
        f"torch: {torch.__version__}, for CUDA 12.6",
        "GPU 0: RTX, compute capability 8.9",
    ]


def test_a_build_without_cuda_needs_no_kernels(monkeypatch):
    monkeypatch.setattr(torch_build.torch.version, "cuda", None)
    assert explain_missing_kernels() is None
    assert list(describe_build()) == [f"torch: {torch.__version__}, without CUDA"]


def test_a_build_for_cuda_that_sees_no_gpu_says_so(gpu, monkeypatch):
    gpu((8, 9))
    monkeypatch.setattr(torch_build.torch.cuda, "device_count", lambda: 0)
    assert next(describe_build()).endswith("it sees no GPU, or the driver is too old for it")


class FakeNvml:
    """NVIDIA's management library, with a driver or without a GPU that works."""

    def __init__(self, status=0):
        self.status, self.is_open = status, False

    def nvmlInit_v2(self):  # noqa: N802 -- the library's name
        self.is_open = self.status == 0
        return self.status

    def nvmlSystemGetDriverVersion(self, text, size):  # noqa: N802
        assert self.is_open
        assert size >= 80  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE
        text.value = b"580.65.06"
        return 0

    def nvmlShutdown(self):  # noqa: N802
        self.is_open = False


def test_the_version_of_the_driver_is_read_if_there_is_one():
    nvml = FakeNvml()
    assert torch_build.read_driver_version(nvml) == "580.65.06"
    assert not nvml.is_open
    assert torch_build.read_driver_version(FakeNvml(status=9)) is None
    assert torch_build.read_driver_version(object()) is None


def test_a_gpu_is_described(gpu, monkeypatch):
    gpu((9, 0))
    monkeypatch.setattr(torch_build, "read_driver_version", lambda: "580.65.06")
    expected = {"name": "RTX", "compute capability": "9.0", "CUDA": "12.6", "driver": "580.65.06"}
    assert torch_build.describe_device(torch.device("cuda")) == expected


def test_a_cpu_is_described_by_its_name():
    description = torch_build.describe_device(torch.device("cpu"))
    assert list(description) == ["name"]
    assert description["name"]
