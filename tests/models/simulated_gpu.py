"""Stands in for a GPU where there is none: torch's CUDA calls on the processor, graphs as lists.

What is recorded is run again on replay, so that everything around the kernels is as on a GPU:
loading, rounding requests up, cutting them, copying in and out, threads.
"""

import contextlib

import torch

from models.runtime import cuda, cuda_graphs, gpu_dispatch

POOL = (0, 7)
POOL_BYTES = 4096
SEGMENTS = [
    {"segment_pool_id": (0, 0), "total_size": 1},
    {"segment_pool_id": POOL, "total_size": POOL_BYTES},
]


class Stream:
    def __init__(self, *device):
        pass

    def wait_stream(self, other):
        pass

    def synchronize(self):
        pass


class Graph:
    """``launches`` are those that were recorded."""

    def replay(self):
        with torch.no_grad():
            for launch in self.launches:
                launch()


@contextlib.contextmanager
def recording(graph, pool=None, stream=None, capture_error_mode="global"):
    # In any other mode a recording fails for what other threads do meanwhile.
    assert cuda._preparing.locked()
    assert pool == POOL and isinstance(stream, Stream) and capture_error_mode == "thread_local"
    yield


def while_preparing(answer):
    """Give ``answer``; torch gives it to no other thread than the one that may be recording."""
    assert cuda._preparing.locked()
    return answer


def nothing(*arguments):
    return contextlib.nullcontext()


def install(monkeypatch, free_bytes=1 << 30):
    """Let `CudaRuntime` run here; return the sizes of the graphs that are replayed, a list."""
    stand_ins = {
        "CUDAGraph": Graph,
        "Stream": Stream,
        "current_device": lambda: 0,
        "current_stream": Stream,
        "empty_cache": lambda: while_preparing(None),
        "is_available": lambda: True,
        "device": nothing,
        "graph": recording,
        "graph_pool_handle": lambda: POOL,
        "mem_get_info": lambda: (free_bytes, free_bytes),
        "memory_snapshot": lambda: while_preparing(SEGMENTS),
        "stream": nothing,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
    graphs, empty, replayed = cuda_graphs.Graphs, torch.empty, []
    record, replay = graphs._record, graphs.replay

    def remember(self, launches):
        graph = record(self, launches)
        graph.launches = launches
        return graph

    def note(self, size):
        replayed.append(size)
        replay(self, size)

    def unpinned(*shape, pin_memory=False, **others):
        return empty(*shape, **others)

    monkeypatch.setattr(graphs, "_record", remember)
    monkeypatch.setattr(graphs, "replay", note)
    monkeypatch.setattr(torch, "empty", unpinned)
    monkeypatch.setattr(cuda, "gpu_architecture", lambda: "sm_90")
    monkeypatch.setattr(cuda, "_with_index", lambda device: torch.device("cpu"))
    gpu_dispatch._dispatch.cache_clear()
    cuda_graphs._stream.cache_clear()
    return replayed
