"""How many cores there are to work on."""

import os


def usable_cores() -> int:
    """Return the number of cores that this process may use.

    Less than ``os.cpu_count()`` in a container or under taskset.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
