"""This process's share of the machine: how many CPUs it may use, and how its memory is allocated.

Commands call `settle` when they start. A library changes neither behind its user's back, so nothing else calls it.
"""

import ctypes
import math
import os
import platform
from pathlib import Path

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of glibc's mallopt (malloc.h)."""
GROWTH = 64 << 20
"""Bytes by which the heap grows at a time."""
DEFAULT_ALLOCATOR = "EVLE_DEFAULT_ALLOCATOR"
"""The environment variable that keeps the allocator as it is."""
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def settle() -> None:
    """Let torch, which must not be imported yet, use the CPUs that this process may use; reuse freed memory."""
    if "OMP_NUM_THREADS" not in os.environ and usable_cpus() < (os.cpu_count() or 1):
        os.environ["OMP_NUM_THREADS"] = str(usable_cpus())
    if not os.environ.get(DEFAULT_ALLOCATOR):
        reuse_memory()


def usable_cpus() -> int:
    """The CPUs that this process may use: those of its affinity, and no more than the quota of its cgroups.

    A quota of one and a half CPUs gives 2. torch knows the affinity alone: with more threads than the quota has CPUs,
    all of them are stopped for most of each period, which can make a step ten times slower.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def cpu_quota(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> float | None:
    """The smallest CPU quota, in CPUs, of this process's cgroup and those above it; None without any.

    `root` is where cgroups are mounted and `own` the file that names this process's. Reads `cpu.max` of cgroup 2, and
    `cpu.cfs_quota_us` and `cpu.cfs_period_us` of cgroup 1. In a container the names may be those of the host, which do
    not exist below `root`; the container's own limits are then at the root.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    quotas: list[float | None] = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            bases = [root, root / "unified"]
        elif "cpu" in controllers.split(","):
            bases = [root / controllers, root / "cpu"]
        else:
            continue
        for base in bases:
            folder = base / name.lstrip("/")
            while folder.is_relative_to(base):
                quotas.append(_quota_of(folder))
                folder = folder.parent
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(folder: Path) -> float | None:
    """The quota of one cgroup in CPUs; None where it has none."""
    try:
        if (folder / "cpu.max").is_file():
            limit, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            limit, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii").strip() for name in ("quota", "period")
            )
        return int(limit) / int(period) if limit not in ("max", "-1") else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def reuse_memory() -> bool:
    """Keep freed memory in this process instead of returning it to the system; whether that could be set.

    By default glibc gives large blocks back as soon as they are freed, so that each activation of each step is mapped
    again, page by page. Only glibc has this setting.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1), mallopt(M_TOP_PAD, GROWTH)])
