"""What a result was measured on: enough to compare, nothing that names the machine."""

import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import version

GPU_FACTS = (
    "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.limit", "memory.total",
)  # fmt: skip


def machine() -> dict[str, object]:
    """Processor, cores, memory, GPU and the versions that matter."""
    import torch

    from pipelines.torch_build import read_processor

    facts: dict[str, object] = {
        "processor": read_processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers", "safetensors")},
    }
    if torch.cuda.is_available():
        facts |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, **read_gpu()}
    return facts


def read_gpu() -> dict[str, str]:
    """Driver, clocks and power limit of the first GPU, as nvidia-smi gives them; nothing without it."""
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FACTS)}", "--format=csv,noheader", "--id=0"]
    with suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return dict(zip(GPU_FACTS, (value.strip() for value in found.split(",")), strict=True))
    return {}
