"""Processes that end with the one that started them, however that ends."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread ends that started it, one of ``parent``.

    Where the process ``parent`` is gone already, this one ends at once. Systems other than Linux
    have no such service: there, only that is done.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # It died before the line above took effect.
        os._exit(1)


def parent_of(process: int) -> int | None:
    """Return the id of the process that ``process`` is a child of; None where that is not known."""
    try:
        with open(f"/proc/{process}/stat") as file:
            # pid (name) state parent ...; the name may hold anything, brackets too.
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return None
