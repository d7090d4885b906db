"""The kernels are compiled for GPUs that this machine lacks, as they are launched for SDXL's sizes."""

import os
import re
import subprocess
from importlib.util import find_spec

import pytest
import torch

from pipelines.kernels.group_norm import plan_fused_group_norm

if find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("Triton interprets, so it does not compile", allow_module_level=True)

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import driver

from pipelines.kernels import group_norm_kernels
from pipelines.kernels.geglu_kernel import plan_geglu
from pipelines.kernels.group_norm_plan import REGISTERS as REGISTERS_OF_A_THREAD

CAPABILITIES = (80, 89, 90)
"""A100, RTX 40xx, H100 and H200. Code for 80 runs on RTX 30xx (86) too."""
TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
REGISTERS = 65536
"""Of a multiprocessor, for all programs that run on it."""
GROUP_NORMS = {
    "unet-320": (2, 320, 104, 152, torch.float16),
    "unet-640": (2, 640, 52, 76, torch.float16),
    "unet-960": (2, 960, 104, 152, torch.bfloat16),
    "unet-1280": (2, 1280, 26, 38, torch.float16),
    "unet-1920": (2, 1920, 26, 38, torch.float16),
    "unet-2560": (2, 2560, 26, 38, torch.float16),
    "vae-128": (1, 128, 1216, 832, torch.bfloat16),
    "vae-256": (1, 256, 1216, 832, torch.bfloat16),
    "vae-512": (1, 512, 608, 416, torch.bfloat16),
    "vae-512-float32": (1, 512, 608, 416, torch.float32),
}


def compile_launch(launch, capability):
    """Return the compiled kernel of a launch, whose tensors may be on the meta device."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]  # torch's allocators align by 512 bytes
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
    source = ASTSource(launch.kernel, signature, constants, attributes)
    options = {"num_warps": launch.warps, "maxnreg": launch.registers}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def measure_resources(compiled, folder):
    """Return bytes of local memory and registers of a thread."""
    file = folder / "kernel.cubin"
    file.write_bytes(compiled.asm["cubin"])
    command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return usage["STACK"] + usage["LOCAL"], usage["REG"]


def check_launch(launch, capability, programs, folder):
    """Compile a launch, and check its memory accesses and that a multiprocessor holds some programs at a time."""
    compiled = compile_launch(launch, capability)
    text = compiled.asm["ptx"]
    loads = set(re.findall(r"ld\.global\S*", text))
    assert any(load.endswith(("v4.b32", "v2.b64")) for load in loads), loads
    local, registers = measure_resources(compiled, folder)
    assert local == 0  # nothing is spilled
    assert programs * launch.warps * 32 * registers <= REGISTERS
    assert compiled.metadata.shared <= 16384
    return text


@pytest.fixture(autouse=True)
def _use_empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def make_group_norm(name):
    *shape, dtype = GROUP_NORMS[name]
    x = torch.empty(shape, dtype=dtype, device="meta").to(memory_format=torch.channels_last)
    vector = x.new_empty(x.shape[1])
    shift = None if name.startswith("vae") else x.new_empty(x.shape[:2])
    return plan_fused_group_norm(x, 32, (vector, vector, shift), 1e-5, True, torch.empty_like(x))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    "name",
    [name if name == "unet-320" else pytest.param(name, marks=pytest.mark.slow) for name in GROUP_NORMS],
)
def test_group_norm_compiles(tmp_path, name, capability):
    measuring, normalizing = make_group_norm(name)
    check_launch(measuring, capability, 3, tmp_path)
    text = check_launch(normalizing, capability, 3, tmp_path)
    stores = set(re.findall(r"st\.global\S*", text))
    assert all(store.endswith(("v4.b32", "v2.b64")) for store in stores), stores


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("columns", [2560, pytest.param(5120, marks=pytest.mark.slow)])
def test_geglu_compiles(tmp_path, columns, capability):
    x = torch.empty(2, 3952, 2 * columns, dtype=torch.float16, device="meta")
    text = check_launch(plan_geglu(x, x.new_empty(2, 3952, columns)), capability, 12, tmp_path)
    stores = set(re.findall(r"st\.global\S*", text))
    assert all(store.endswith(("v4.b32", "v2.b64")) for store in stores), stores


class GpuThatIsAbsent:
    """What Triton asks a driver for before it compiles a launch."""

    DEVICE = 77

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return self.DEVICE

    def get_current_stream(self, _):
        return 0


@pytest.mark.parametrize("name", ["measure_groups", "normalize_groups"])
def test_one_compilation_serves_all_sizes_and_numbers_of_images(monkeypatch, name):
    monkeypatch.setattr(driver, "_active", GpuThatIsAbsent())
    kernel = getattr(group_norm_kernels, name)
    for images, height, width in ((1, 1, 1), (2, 8, 8), (1, 9, 11), (4, 104, 152)):
        x = torch.empty(images, height, width, 320, dtype=torch.float16).permute(0, 3, 1, 2)
        vector = x.new_empty(320)
        launches = plan_fused_group_norm(x, 32, (vector, vector, None), 1e-6, False, torch.empty_like(x))
        (launch,) = (launch for launch in launches if launch.kernel is kernel)
        kernel.run(
            grid=launch.grid,
            warmup=True,
            num_warps=launch.warps,
            maxnreg=launch.registers,
            **launch.arguments,
        )
    (compiled,) = kernel.device_caches[GpuThatIsAbsent.DEVICE][0].values()
    assert compiled.metadata.maxnreg == REGISTERS_OF_A_THREAD


def test_nothing_of_a_launch_depends_on_the_number_of_images():
    def describe(images):
        x = torch.empty(images, 4, 4, 64, device="meta").permute(0, 3, 1, 2)
        vector = x.new_empty(64)
        launches = plan_fused_group_norm(x, 32, (vector, vector, None), 1e-5, True, torch.empty_like(x))
        numbers = [
            {name: value for name, value in launch.arguments.items() if not isinstance(value, torch.Tensor)}
            for launch in launches
        ]
        return numbers, [launch.grid[:2] for launch in launches]

    assert describe(1) == describe(5)
