"""How many cores there are to work on."""

import os
from math import ceil
from pathlib import Path
from typing import Final

CGROUP: Final = Path("/sys/fs/cgroup")


def usable_cores(*, cgroup: Path = CGROUP) -> int:
    """Return the number of cores that this process may use.

    Less than ``os.cpu_count()`` under taskset, and in a container that gets a share of the
    processor's time (``docker run --cpus``): more threads than that would be stopped in the middle
    of their work, while others wait for them.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return min(cores, max(1, ceil(_quota(cgroup) or cores)))


def _quota(cgroup: Path) -> float | None:
    """Return how many cores' time the control group in the folder ``cgroup`` may use, if limited.

    As in a container, where the folder is that of the group itself; in version 2 or 1 of the
    interface.
    """
    try:
        quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            v1 = cgroup / "cpu"
            quota = (v1 / "cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (v1 / "cpu.cfs_period_us").read_text(encoding="ascii")
        except (OSError, ValueError):
            return None
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return None
    return cores if cores > 0 else None  # version 1 says -1 where there is no limit
