"""Small networks through all kernels of the GPU engine: ``python -m`` this, under a checker.

compute-sanitizer watches every access of a kernel to memory, which slows it down a hundredfold: the
networks here are small, but between them have every kind of layer, and channels and pixels that
fill no tile.
"""

import sys
from collections.abc import Iterator

from benchmarks.gpu_measuring.card import require_card
from benchmarks.gpu_measuring.layers import NAMES, launch, layers, on_kind
from benchmarks.gpu_measuring.nets import Net, Source, make_net, timed_images
from benchmarks.gpu_measuring.networks import MOST_ERROR, logit_error
from benchmarks.gpu_measuring.ratios import OURS
from models.preprocessing import InputSpec
from store.errors import Unavailable

_BATCH = 3

SOURCES = {
    "digits": Source("digits_cnn", InputSpec(1, 8, 8, (0.5,), (0.25,)), 10),
    "resnet20": Source("resnet20", InputSpec(3, 8, 8, (0.5,) * 3, (0.25,) * 3), 10),
}


def check(net: Net) -> Iterator[str]:
    """Run a network on the GPU in each form, and its layers on each kind; yield what is wrong."""
    import torch

    from models.runtime.cuda import CudaRuntime
    from models.runtime.gpu_kernels import GpuKernels

    batch = timed_images(net, _BATCH)
    for name in OURS:
        artifact = getattr(net, name)
        answers = CudaRuntime(artifact, max_batch_images=_BATCH, autotune=False).run(batch)
        error = logit_error(artifact, batch, answers)
        if not error <= (0.0 if name == "w1a8" else MOST_ERROR):
            yield f"{net.name}: {name} is off the reference runtime by {error:.1e}"
    device, kernels = torch.device("cuda"), GpuKernels(autotune=False)
    for step in layers([net.w1a16]).values():
        for kind in NAMES.values():
            launch(on_kind(step, kind), _BATCH, kernels, device)()
    torch.cuda.synchronize()


def main() -> int:
    """Check all networks; return the exit status."""
    try:
        require_card()
    except Unavailable as error:
        print(f"{error.detail} {error.remedy}", file=sys.stderr)
        return 1
    wrong = [line for name, source in SOURCES.items() for line in check(make_net(name, source))]
    print("\n".join(wrong) or f"{len(SOURCES)} small networks: as the reference runtime has them")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
