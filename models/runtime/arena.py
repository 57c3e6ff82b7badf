"""Where the values of a flat program lie in its arena: those never alive at once share their bytes.

A value is alive from the step that first writes it to the step that last reads or writes it, both
included: a step's results do not overwrite what it reads. There is one exception. A step that takes
each number of a value once, to make the number of its result at the same place, may put it there:
the sum of a residual block takes the place of its summand, which spares the cache a whole map.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.runtime.flat_program import NONE, FlatProgram, Kind, Step


@dataclass(frozen=True)
class Arena:
    """``offsets`` of the values in bytes, and the ``bytes`` that they need together, per image."""

    offsets: tuple[int, ...]
    bytes: int


def place(program: FlatProgram) -> Arena:
    """Place the values of ``program``, the largest first, each at the lowest place that is free."""
    born, died = _lifetimes(program)
    owner = _owners(program, died)
    owners = sorted(set(owner))
    freed = dict.fromkeys(owners, 0)
    for value, first in enumerate(owner):
        freed[first] = max(freed[first], died[value])
    arena = place_intervals(
        [program.values[i].bytes for i in owners],
        [born[i] for i in owners],
        [freed[i] for i in owners],
    )
    offsets = dict(zip(owners, arena.offsets, strict=True))
    return Arena(tuple(offsets[i] for i in owner), arena.bytes)


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


def _owners(program: FlatProgram, died: list[int]) -> list[int]:
    """Return for every value the first of those that take the same place one after the other."""
    owner = list(range(len(program.values)))
    for time, step in enumerate(program.steps):
        if step.out_f32 == NONE:
            continue
        made = program.values[step.out_f32]
        for source in _taken_number_by_number(step):
            if died[source] == time and program.values[source] == made:
                owner[step.out_f32] = owner[source]
                break
    return owner


def _taken_number_by_number(step: Step) -> list[int]:
    """Return the values that ``out_f32`` of ``step`` may take the place of, once they are dead."""
    if step.kind == Kind.ELEMENTWISE:
        return step.reads
    if step.kind == Kind.PRODUCT and step.in1 not in (NONE, step.in0):
        return [step.in1]
    return []
