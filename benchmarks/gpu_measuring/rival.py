"""The rival: the float network in half precision as torch's compiler makes it fastest.

Batch norms are folded into the layers before them, tensors are channels last, the compiler tries
all it has (``max-autotune``), and what it comes to is captured in one CUDA graph for each batch, as
our own networks are. The compiler's own graphs (``torch.compile(mode="max-autotune")``) would run
the same kernels, but spend tens of microseconds in Python on every call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from benchmarks.latency.folding import without_batch_norm

MODE: Final = "max-autotune-no-cudagraphs"
_WARM_UP: Final = 3  # runs before a capture: compiling, choosing and allocating


def in_half_precision(network: nn.Module, device: str) -> nn.Module:
    """Return a copy in float16 and channels last, batch norms folded, on ``device``."""
    folded = without_batch_norm(network).half().to(device)
    return folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def parameter_bytes(network: nn.Module) -> int:
    """Return the bytes of all parameters and buffers."""
    tensors = [*network.parameters(), *network.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class Captured:
    """Work in a CUDA graph that reads ``fed`` and writes ``result``, both where they were.

    A graph knows addresses only: what lies there, ``work`` has to keep.
    """

    replay: Callable[[], None]
    work: Callable[[Tensor], Tensor]
    fed: Tensor
    result: Tensor


def capture(work: Callable[[Tensor], Tensor], fed: Tensor) -> Captured:
    """Capture ``work`` on ``fed``, a tensor on the GPU, in a CUDA graph."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            work(fed)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # The compiler's threads may still be at work meanwhile.
    with torch.inference_mode(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = work(fed)
    return Captured(graph.replay, work, fed, result)


def compiled(network: nn.Module, images: Tensor) -> Captured:
    """Compile a network of `in_half_precision` for the batch ``images`` and capture it.

    ``images``: float32 ``(N, C, H, W)`` on the CPU.
    """
    fed = images.half().cuda().contiguous(memory_format=torch.channels_last)
    # A graph of its own for every batch: what is compiled for any batch is slower.
    torch.compiler.reset()
    return capture(torch.compile(network, mode=MODE, dynamic=False), fed)
