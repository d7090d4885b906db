"""Launches of Triton's kernels that are recorded, and computed without Triton."""

from pipelines.kernels import geglu, group_norm, triton_support

KERNELS = {"group_norm": group_norm, "geglu": geglu}


def record_launches(monkeypatch, has_triton=lambda device: True, computes="eager"):
    """Return a list to which the names of the kernels that are launched from now on are appended.

    Args:
        has_triton: whether Triton runs on a device.
        computes: "eager" computes them with torch's own operations, "fused" with the kernels.
    """
    names = []

    def record(name, function):
        def call(*args):
            names.append(name)
            return function(*args)

        return call

    monkeypatch.setattr(triton_support, "has_triton", has_triton)
    for name, module in KERNELS.items():
        function = record(name, getattr(module, f"compute_{computes}_{name}"))
        monkeypatch.setattr(module, f"compute_fused_{name}", function)
    return names
