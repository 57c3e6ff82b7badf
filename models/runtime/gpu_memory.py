"""Where the values of a GPU's program lie: those never alive at once share their bytes.

A value is alive from the step that first writes it to the last one that reads it; the images are
alive from the start and the result to the end. Places are those for one image: for a batch of n
every offset is n times as large, so that one placement serves every batch size.
"""

from math import prod
from typing import Final

from models.runtime.arena import Arena, place_intervals
from models.runtime.gpu_program import GpuProgram

# Kernels count the elements of a value in 32 bits.
_MOST_ELEMENTS: Final = 2**31 - 1


def place_values(program: GpuProgram) -> Arena:
    """Return the offset of every value of ``program`` and the bytes of all, per image."""
    born = [len(program.steps)] * len(program.values)
    died = [0] * len(program.values)
    for time, step in enumerate(program.steps):
        for value in step.writes:
            born[value] = min(born[value], time)
        for value in (*step.writes, *step.reads):
            died[value] = max(died[value], time)
    died[program.output] = len(program.steps)
    return place_intervals([value.bytes for value in program.values], born, died)


def most_images(program: GpuProgram, memory_bytes: int) -> int:
    """Return how many images at once fit into so many bytes; one at least."""
    elements = max(prod(value.shape) for value in program.values)
    image_bytes = place_values(program).bytes + 4 * prod(program.images_shape)
    return max(1, min(memory_bytes // image_bytes, _MOST_ELEMENTS // elements))
