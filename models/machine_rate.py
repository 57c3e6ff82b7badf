"""How fast this machine multiplies: measured once, by a product of matrices, when first asked.

On one thread, and the fastest of many short products: so the figure is nearly the same on a busy
machine, where two threads would wait for each other.
"""

import threading
import time
from typing import Final

import torch

_SIZE: Final = 512
_SECONDS: Final = 0.15

_lock = threading.Lock()
_found: list[float] = []


def macs_per_second() -> float:
    """Return the multiply-accumulates of float32 that one thread does in a second.

    Blocking: the first call takes a seventh of a second, and other calls wait for it.
    """
    with _lock:
        if not _found:
            _found.append(_measure())
        return _found[0]


def _measure() -> float:
    matrix = torch.full((_SIZE, _SIZE), 0.5)
    # Of this thread alone: others keep the number of threads that they were given.
    had = torch.get_num_threads()
    torch.set_num_threads(1)
    fastest = float("inf")
    begun = before = time.perf_counter()
    with torch.inference_mode():
        while before - begun < _SECONDS:
            torch.mm(matrix, matrix)
            after = time.perf_counter()
            fastest, before = min(fastest, after - before), after
    torch.set_num_threads(had)
    return _SIZE**3 / fastest
