"""The number of CPU threads: physical cores, within the quota of the control groups."""

from math import inf

import pytest

from server.engine.threads import choose_threads, count_cores, read_quota


def write(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def write_topology(root, *siblings):
    for cpu, text in enumerate(siblings):
        write(root, f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", text)


@pytest.fixture
def root(tmp_path):
    """A machine of four cores with two threads each, numbered as Intel does."""
    write_topology(tmp_path, *("0,4", "1,5", "2,6", "3,7") * 2)
    return tmp_path


def test_cores_are_counted_once(root, tmp_path_factory):
    assert count_cores(range(8), root) == 4
    assert count_cores([0, 4], root) == 1
    assert count_cores([0, 1, 4], root) == 2
    assert count_cores(range(8), tmp_path_factory.mktemp("unknown")) == 8


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, inf),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, inf),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "200000 100000",
          "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 2),
        ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": "50000 100000",
          "sys/fs/cgroup/cpu.max": "300000 100000"}, 0.5),
        ({"proc/self/cgroup": "3:cpu,cpuacct:/docker/1f\n2:memory:/docker/1f",
          "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"proc/self/cgroup": "3:cpu:/", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, inf),
        ({"proc/self/cgroup": "3:cpuset:/", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, inf),
        ({"proc/self/cgroup": "0::/../a", "sys/fs/cgroup/cpu.max": "garbage"}, inf),
    ],
)  # fmt: skip
def test_the_smallest_quota_counts(tmp_path, files, quota):
    for path, text in files.items():
        write(tmp_path, path, text)
    assert read_quota(tmp_path) == quota


@pytest.mark.parametrize(("quota", "threads"), [("max", 4), ("250000", 2), ("50000", 1), ("900000", 4)])
def test_auto_is_the_cores_within_the_quota(root, quota, threads):
    write(root, "sys/fs/cgroup/cpu.max", f"{quota} 100000")
    assert choose_threads("auto", {}, range(8), root) == threads


def test_a_number_and_the_users_own_variable_come_first(root):
    assert choose_threads(7, {}, range(8), root) == 7
    assert choose_threads("auto", {"OMP_NUM_THREADS": "3"}, range(8), root) is None
    assert choose_threads(7, {"OMP_NUM_THREADS": "3"}, range(8), root) == 7
