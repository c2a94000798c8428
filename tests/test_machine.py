"""How many CPUs this process may use, read from files as Linux writes them, and the allocator's settings."""

import os
import platform
import subprocess
import sys

import pytest

from evle import machine


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n", encoding="ascii")


@pytest.fixture
def cgroups(tmp_path):
    """A place for cgroups, and the file that names the process's own."""
    own = tmp_path / "own"
    own.write_text("0::/pod/container\n", encoding="ascii")
    write(tmp_path / "root")
    return tmp_path / "root", own


def test_no_quota_is_no_limit(cgroups):
    root, own = cgroups
    write(root / "pod" / "container", cpu__max="max 100000")
    assert machine.cpu_quota(root, own) is None


def test_the_quota_of_the_own_cgroup(cgroups):
    root, own = cgroups
    write(root / "pod" / "container", cpu__max="150000 100000")
    assert machine.cpu_quota(root, own) == 1.5


def test_the_smallest_quota_on_the_way_up_counts(cgroups):
    root, own = cgroups
    write(root / "pod" / "container", cpu__max="800000 100000")
    write(root / "pod", cpu__max="200000 100000")
    assert machine.cpu_quota(root, own) == 2


def test_in_a_container_the_limit_is_at_the_root(cgroups):
    root, own = cgroups
    write(root, cpu__max="400000 100000")
    assert machine.cpu_quota(root, own) == 4


def test_cgroups_of_version_1(tmp_path):
    own = tmp_path / "own"
    own.write_text("5:memory:/a\n3:cpu,cpuacct:/docker/x\n", encoding="ascii")
    write(tmp_path / "cpu" / "docker" / "x", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    assert machine.cpu_quota(tmp_path, own) == 0.5
    write(tmp_path / "cpu" / "docker" / "x", cpu__cfs_quota_us="-1")
    assert machine.cpu_quota(tmp_path, own) is None


@pytest.mark.parametrize("text", ["", "max", "many 100000", "100000 0", "\x00"])
def test_what_cannot_be_read_is_no_limit(cgroups, text):
    root, own = cgroups
    write(root / "pod" / "container", cpu__max=text)
    assert machine.cpu_quota(root, own) is None
    assert machine.cpu_quota(root, own.parent / "absent") is None


@pytest.mark.parametrize(("quota", "affinity", "usable"), [(None, 8, 8), (1.5, 8, 2), (0.3, 8, 1), (16.0, 4, 4)])
def test_usable_cpus_are_those_of_affinity_and_quota(monkeypatch, quota, affinity, usable):
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    assert machine.usable_cpus() == usable


def test_a_command_gives_torch_the_threads_of_its_quota_unless_they_are_given(monkeypatch):
    monkeypatch.setattr(machine, "usable_cpus", lambda: 3)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(machine, "reuse_memory", lambda: True)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    machine.settle()
    assert os.environ["OMP_NUM_THREADS"] == "7"
    monkeypatch.delenv("OMP_NUM_THREADS")
    machine.settle()
    assert os.environ["OMP_NUM_THREADS"] == "3"


FAULTS = """
import ctypes, resource, sys
from evle.machine import settle
settle()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def touch():
    block = libc.malloc(1 << 26)
    ctypes.memset(block, 1, 1 << 26)
    libc.free(block)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_memory_is_used_again_unless_the_default_allocator_is_asked_for():
    """A block of 64 MiB has 16,384 pages, each of which is a page fault when it is mapped."""

    def faults(**environment):
        command = [sys.executable, "-c", FAULTS]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults(**{machine.DEFAULT_ALLOCATOR: "1"}) > 10 * max(100, faults(**{machine.DEFAULT_ALLOCATOR: ""}))


def test_importing_the_library_settles_nothing():
    code = "import evle.machine as m; m.settle = m.reuse_memory = None; import evle, evle.cli.main"
    subprocess.run([sys.executable, "-c", code], check=True)
