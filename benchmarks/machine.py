"""What a result was measured on: enough to compare, nothing that names the machine."""

import os
import platform
from importlib.metadata import version


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
        facts |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return facts
