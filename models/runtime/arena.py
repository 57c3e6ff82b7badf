"""Where the values of a flat program lie in its arena: those never alive at once share their bytes.

A value is alive from the step that first writes it to the step that last reads or writes it, both
included: a step's results never overwrite what it reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.runtime.flat_program import FlatProgram


@dataclass(frozen=True)
class Arena:
    """``offsets`` of the values in bytes, and the ``bytes`` that they need together, per image."""

    offsets: tuple[int, ...]
    bytes: int


def place(program: FlatProgram) -> Arena:
    """Place the values of ``program``, the largest first, each at the lowest place that is free."""
    sizes = [value.bytes for value in program.values]
    born, died = _lifetimes(program)
    return place_intervals(sizes, born, died)


def place_intervals(sizes: Sequence[int], born: Sequence[int], died: Sequence[int]) -> Arena:
    """Place ``sizes[i]`` bytes that are taken from time ``born[i]`` to ``died[i]``, inclusive."""
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], born[i]))
    starts = np.zeros(len(sizes), np.int64)  # of those placed, in the order of their placing
    ends = np.zeros(len(sizes), np.int64)
    first, last = (np.asarray(times, np.int64)[order] for times in (born, died))
    offsets = [0] * len(sizes)
    for count, i in enumerate(order):
        rivals = (first[:count] <= died[i]) & (last[:count] >= born[i])
        taken = sorted(zip(starts[:count][rivals], ends[:count][rivals], strict=True))
        offset = 0
        for start, end in taken:
            if start - offset >= sizes[i]:
                break
            offset = max(offset, int(end))
        offsets[i] = starts[count] = offset
        ends[count] = offset + sizes[i]
    return Arena(tuple(offsets), int(ends.max(initial=0)))


def _lifetimes(program: FlatProgram) -> tuple[list[int], list[int]]:
    born = [len(program.steps)] * len(program.values)
    died = [0] * len(program.values)
    for time, step in enumerate(program.steps):
        for value in (*step.reads, *step.writes):
            born[value] = min(born[value], time)
            died[value] = max(died[value], time)
    return born, died
