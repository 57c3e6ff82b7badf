"""Small networks through all kernels of the GPU engine: ``python -m`` this, by itself or watched.

compute-sanitizer watches every access of a kernel to memory, which slows it down a hundredfold: the
networks here are small, but between them have every kind of layer, and channels and pixels that
fill no tile. With ``--layers`` their layers run alone, each on tensors of its own: of those a
checker knows where they end, if PYTORCH_NO_CUDA_MEMORY_CACHING is set. A network's values lie in
one piece of memory, where it sees little.
"""

import sys
from collections.abc import Iterator, Sequence

import torch

from benchmarks.gpu_measuring.card import require_card
from benchmarks.gpu_measuring.layers import NAMES, launch, layers, on_kind
from benchmarks.gpu_measuring.nets import Net, Source, make_net, timed_images
from benchmarks.gpu_measuring.ratios import OURS
from models.preprocessing import InputSpec
from store.errors import Unavailable

_BATCH = 3

SOURCES = {
    "digits": Source("digits_cnn", InputSpec(1, 8, 8, (0.5,), (0.25,)), 10),
    "resnet20": Source("resnet20", InputSpec(3, 8, 8, (0.5,) * 3, (0.25,) * 3), 10),
}


def check_network(net: Net) -> Iterator[str]:
    """Run a network on the GPU in each form; yield what is wrong."""
    from benchmarks.gpu_measuring.networks import MOST_ERROR, logit_error
    from models.runtime.cuda import CudaRuntime

    batch = timed_images(net, _BATCH)
    for name in OURS:
        artifact = getattr(net, name)
        loaded = CudaRuntime(artifact, batch_sizes=[_BATCH], autotune=False)
        error = logit_error(artifact, batch, loaded.run(batch))
        if not error <= (0.0 if name == "w1a8" else MOST_ERROR):
            yield f"{net.name}: {name} is off the reference runtime by {error:.1e}"


def run_layers(net: Net, device: torch.device) -> int:
    """Run each layer of a network on every kind of activations; return how many ran."""
    from models.runtime.gpu_kernels import GpuKernels

    kernels, count = GpuKernels(autotune=False), 0
    for step in layers([net.w1a16]).values():
        for kind in NAMES.values():
            launch(on_kind(step, kind), _BATCH, kernels, device)()
            torch.cuda.synchronize()  # an error is that of the layer it is found behind
            count += 1
    return count


def main(given: Sequence[str]) -> int:
    """Check all networks, or with ``--layers`` their layers alone; return the exit status."""
    try:
        require_card()
    except Unavailable as error:
        print(f"{error.detail} {error.remedy}", file=sys.stderr)
        return 1
    nets = [make_net(name, source) for name, source in SOURCES.items()]
    wrong = []
    if "--layers" not in given:
        wrong = [line for net in nets for line in check_network(net)]
        print("\n".join(wrong) or f"{len(nets)} networks: as the reference runtime has them")
    print(f"{sum(run_layers(net, torch.device('cuda')) for net in nets)} layers ran")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
