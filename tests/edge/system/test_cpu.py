"""Threads on boards as their kernels describe them: trees like /sys with what these boards have there."""

import math

import pytest
from slm_edge.edge.system.machine import cpu_quota, default_decode_threads, default_threads, fast_cores


def board(root, cores, *, lists=None):
    """Writes a tree like /sys.

    Args:
        cores: for each physical core its CPUs, its number in its cluster, and files of each CPU with their numbers.
        lists: further files with lists of CPUs.
    """
    for cpus, core_id, files in cores:
        for cpu in cpus:
            folder = root / f"devices/system/cpu/cpu{cpu}"
            (folder / "topology").mkdir(parents=True)
            (folder / "topology/core_id").write_text(f"{core_id}\n")
            (folder / "topology/physical_package_id").write_text("0\n")
            (folder / "topology/thread_siblings_list").write_text(",".join(map(str, cpus)) + "\n")
            for name, value in files.items():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(f"{value}\n")
    for name, text in (lists or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root, {cpu for cpus, _, _ in cores for cpu in cpus}


def rk3588(root):
    """Four Cortex-A55 and two clusters of two Cortex-A76; Linux 6.1 counts cores from 0 in each cluster."""
    little = [((cpu,), cpu, {"cpu_capacity": 414}) for cpu in range(4)]
    big = [((cpu,), cpu % 2, {"cpu_capacity": 1024 if cpu < 6 else 1018}) for cpu in range(4, 8)]
    return board(root, little + big)


def intel_12700h(root):
    """Six P cores of two hyperthreads at 4.7 GHz and eight E cores at 3.5 GHz, three quarters of it."""
    p_cores = [((2 * i, 2 * i + 1), 4 * i, {"cpufreq/cpuinfo_max_freq": 4_700_000}) for i in range(6)]
    e_cores = [((12 + i,), 24 + i, {"cpufreq/cpuinfo_max_freq": 3_500_000}) for i in range(8)]
    lists = {"devices/cpu_core/cpus": "0-11", "devices/cpu_atom/cpus": "12-19"}
    return board(root, p_cores + e_cores, lists=lists)


def pi(root):
    """Four equal cores, as on a Raspberry Pi 4 and 5."""
    return board(root, [((cpu,), cpu, {"cpufreq/cpuinfo_max_freq": 1_800_000}) for cpu in range(4)])


def epyc_guest(root):
    """Two hyperthreads of one core, nothing said about clocks: a small virtual machine."""
    return board(root, [((0, 1), 0, {})])


@pytest.mark.parametrize(("make", "expected"), [(rk3588, 4), (intel_12700h, 6), (pi, 4), (epyc_guest, 1)])
def test_fast_physical_cores_alone(tmp_path, make, expected):
    root, cpus = make(tmp_path)
    assert fast_cores(cpus, root) == default_threads(cpus, root, quota=99.0) == expected


def test_affinity_and_quota_count(tmp_path):
    root, cpus = rk3588(tmp_path / "rk")
    assert default_threads({0, 1, 2}, root, quota=99.0) == 3
    assert default_threads({3, 4, 5}, root, quota=99.0) == 2
    assert default_threads(cpus, root, quota=2.5) == 2
    assert default_threads(cpus, root, quota=0.3) == 1
    root, _ = intel_12700h(tmp_path / "intel")
    assert default_threads({0, 1, 2, 12}, root, quota=99.0) == 2
    assert default_threads({12, 13, 14}, root, quota=99.0) == 3
    assert fast_cores({0}, tmp_path / "nowhere") is None


def test_the_least_quota_of_the_own_group_and_those_above_counts(tmp_path):
    own = tmp_path / "own"

    def group(place, **files):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (tmp_path / place / name.replace("__", ".")).write_text(text)

    own.write_text("0::/system.slice/app.service\n")
    assert cpu_quota(tmp_path, own) == math.inf
    group("system.slice/app.service", cpu__max="max 100000\n")
    assert cpu_quota(tmp_path, own) == math.inf
    group("system.slice", cpu__max="150000 100000\n")
    assert cpu_quota(tmp_path, own) == 1.5
    group("system.slice/app.service", cpu__max="50000 100000\n")
    assert cpu_quota(tmp_path, own) == 0.5
    # Version 1: no limit is -1, and the period stands in a file of its own.
    own.write_text("4:memory:/app\n3:cpu,cpuacct:/app/part\n0::/\n")
    assert cpu_quota(tmp_path, own) == math.inf
    group("cpu/app/part", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    group("cpu/app", cpu__cfs_quota_us="40000\n", cpu__cfs_period_us="20000\n")
    assert cpu_quota(tmp_path, own) == 2
    group("cpu/app", cpu__cfs_quota_us="rubbish\n")
    assert cpu_quota(tmp_path, own) == math.inf


def test_single_tokens_take_fewer_threads_where_that_reads_faster(tmp_path):
    (tmp_path / "compatible").write_bytes(b"raspberrypi,5-model-b\0brcm,bcm2712\0")
    assert [default_decode_threads(n, tmp_path) for n in (4, 3, 1)] == [2, 2, 1]
    (tmp_path / "compatible").write_bytes(b"raspberrypi,4-model-b\0brcm,bcm2711\0")
    assert default_decode_threads(4, tmp_path) == 4
    assert default_decode_threads(8, tmp_path / "none") == 8
