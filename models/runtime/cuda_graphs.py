"""A program's launches, recorded once for every batch size and played back as a whole.

Starting a kernel costs a processor some microseconds, which is more than a small layer takes to
compute; a graph is started once for a whole network. Everything that a graph touches has its place
beforehand, so that playing it back allocates nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from models.runtime.gpu_execution import GpuExecution, Launch


def sizes_up_to(most: int) -> tuple[int, ...]:
    """Return the sizes that graphs are made for: the powers of 2 below ``most``, and ``most``."""
    return (*(1 << i for i in range((most - 1).bit_length())), most)


class Graphs:
    """One graph for each of ``sizes``; what they allocate beside ``execution`` they share.

    They must not be played back at the same time; nor may two threads of a process make any.
    """

    def __init__(self, execution: GpuExecution, sizes: Sequence[int], device: torch.device) -> None:
        self.sizes = tuple(sorted(sizes))
        with torch.cuda.device(device), torch.no_grad():
            self._pool: Any = torch.cuda.graph_pool_handle()
            # The largest first: what smaller ones allocate fits into what it has left.
            self._graphs = {size: self._record(execution.bind(size)) for size in self.sizes[::-1]}
            self.pool_bytes = _pool_bytes(self._pool)
            """Bytes that the graphs allocated for themselves."""

    def size_for(self, images: int) -> int:
        """Return the least size that holds ``images``, which are not more than the largest."""
        return next(size for size in self.sizes if size >= images)

    def replay(self, size: int) -> None:
        """Enqueue the graph of that size on the current stream."""
        self._graphs[size].replay()

    def _record(self, launches: Iterable[Launch]) -> torch.cuda.CUDAGraph:
        launches = list(launches)
        stream = _stream(torch.cuda.current_device())
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Kernels are compiled when they are first launched, which a recording must not meet.
            for launch in launches:
                launch()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with (
            _own_workspaces(),
            # Other threads may go on serving with other graphs meanwhile.
            torch.cuda.graph(
                graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
            ),
        ):
            for launch in launches:
                launch()
        return graph


def _pool_bytes(pool: Any) -> int:
    return sum(
        segment["total_size"]
        for segment in torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        if tuple(segment["segment_pool_id"]) == tuple(pool)
    )


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """Let what is recorded meanwhile have working memory of cuBLAS in its own pool.

    torch keeps such memory for every stream. A graph that had been given that of the stream it is
    recorded on would share it with all graphs and with the next model's first launches, which run
    while this one serves.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


@cache
def _stream(device_index: int) -> torch.cuda.Stream:
    """Return the stream that graphs of a device are recorded on.

    It is the same for all: libraries keep memory for every stream that they have seen.
    """
    return torch.cuda.Stream(device_index)  # type: ignore[no-untyped-call]
