"""How many CPU threads a model uses: one per physical core that this process may run on, within its CPU quota.

Threads wait for each other after each operation, so more of them than cores, or a quota that pauses some, makes
everything slower by several times.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from math import inf
from pathlib import Path

ROOT = Path("/")


def choose_threads(
    setting: int | str,
    environment: Mapping[str, str] = os.environ,
    cpus: Collection[int] | None = None,
    root: Path = ROOT,
) -> int | None:
    """Return the number of threads that a setting asks for, or None to leave it to torch.

    "auto" is left to torch if OMP_NUM_THREADS is set, and on systems that do not say which cores a process has.

    Args:
        cpus: numbers of the logical CPUs that the process may run on; by default asked of the system.
        root: folder that contains `proc` and `sys`.
    """
    if isinstance(setting, int):
        return setting
    if cpus is None and hasattr(os, "sched_getaffinity"):
        cpus = os.sched_getaffinity(0)
    if not cpus or environment.get("OMP_NUM_THREADS"):
        return None
    return max(1, int(min(count_cores(cpus, root), read_quota(root))))


def count_cores(cpus: Collection[int], root: Path = ROOT) -> int:
    """Return the number of physical cores of some logical CPUs; without information, each is a core."""
    topology = (root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list" for cpu in cpus)
    siblings = (_read(file) or str(file) for file in topology)
    return len(set(siblings))


def read_quota(root: Path = ROOT) -> float:
    """Return the smallest CPU quota of this process's control group and those around it, in CPUs, or infinity."""
    return min(_iter_quotas(root), default=inf)


def _iter_quotas(root: Path) -> Iterator[float]:
    for line in (_read(root / "proc/self/cgroup") or "0::/").splitlines():
        _, controllers, group = line.split(":", 2)
        is_v2 = not controllers
        if is_v2 or "cpu" in controllers.split(","):
            mounted = root / "sys/fs/cgroup" / ("" if is_v2 else "cpu")
            # in a container the path may be that on the host, where only the mount's own files exist here
            for folder in (mounted / group.lstrip("/"), *(mounted / group.lstrip("/")).parents):
                if folder.is_relative_to(mounted):
                    yield _read_group_quota(folder, is_v2)


def _read_group_quota(folder: Path, is_v2: bool) -> float:
    """Return the quota of one control group in CPUs, or infinity."""
    files = ("cpu.max",) if is_v2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    words = " ".join(_read(folder / file) or "" for file in files).split()
    if len(words) != 2 or not all(word.isdecimal() for word in words) or int(words[1]) == 0:
        return inf  # "max 100000" and -1 are no quota
    return int(words[0]) / int(words[1])


def _read(file: Path) -> str | None:
    try:
        return file.read_text("ascii").strip()
    except (OSError, ValueError):
        return None
