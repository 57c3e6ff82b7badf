"""Whole networks on the GPU: ours on both kinds of activations, and the rival, by turns."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.gpu_measuring.card import held_memory
from benchmarks.gpu_measuring.laps import Run, by_turns, medians
from benchmarks.gpu_measuring.nets import Net, timed_images
from benchmarks.gpu_measuring.ratios import OURS, RIVAL
from benchmarks.gpu_measuring.rival import compiled, in_half_precision, parameter_bytes
from models.artifact import Artifact
from models.runtime.compilation import compile_plan
from models.runtime.cuda import CudaRuntime
from models.runtime.gpu_compilation import gpu_program
from models.runtime.gpu_program import ProductStep
from models.runtime.reference import ReferenceRuntime

CHECKED_IMAGES = 2  # on the reference runtime too, which takes its time
# Of logits, squared and relative to their squares: what float16 between layers may cost.
MOST_ERROR = 1e-3


@dataclass
class Measured:
    """Figures of one network and batch, and what was found to be wrong."""

    figures: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def measure(net: Net, images: int, seconds: float, *, autotune: bool) -> Measured:
    """Time a network for batches of ``images``, each runtime for about ``seconds``.

    ``<net>.b<images>.<runtime>_ms`` is the median of a batch, ``_peak_mib`` the memory on the
    device that it holds, loaded and running; ``<net>.<runtime>_weight_bytes`` the part that is
    weights and tables, ``_packed_bytes`` what bits take of that; ``<net>.<runtime>_logit_error``
    how far ours are from the reference runtime.
    """
    found = Measured()
    batch = timed_images(net, images)
    runs: dict[str, Run] = {}
    cell = f"{net.name}.b{images}"
    for name in OURS:
        artifact = getattr(net, name)
        with held_memory() as held:
            loaded = CudaRuntime(
                artifact, max_batch_images=images, batch_sizes=[images], autotune=autotune
            )
            answers = loaded.run(batch)
        found.figures[f"{cell}.{name}_peak_mib"] = held.bytes / 2**20
        found.figures[f"{net.name}.{name}_weight_bytes"] = loaded.resident_bytes
        found.figures[f"{net.name}.{name}_packed_bytes"] = packed_bytes(artifact)
        error = logit_error(artifact, batch, answers)
        found.figures[f"{net.name}.{name}_logit_error"] = error
        if not error <= (0.0 if name == "w1a8" else MOST_ERROR):
            found.failures.append(f"{cell}: {name} is off the reference runtime by {error:.1e}")
        loaded.static_input(images).copy_(batch)
        runs[name] = _replay(loaded, images)
    torch.backends.cudnn.benchmark = True  # the library's fastest convolution for a shape
    with held_memory() as held:
        half = in_half_precision(net.network, "cuda")
        rival = compiled(half, batch)
    found.figures[f"{cell}.{RIVAL}_peak_mib"] = held.bytes / 2**20
    found.figures[f"{net.name}.{RIVAL}_weight_bytes"] = parameter_bytes(half)
    runs[RIVAL] = rival.replay
    for name, seconds_of_batch in medians(by_turns(runs, seconds)).items():
        found.figures[f"{cell}.{name}_ms"] = 1000 * seconds_of_batch
    return found


def packed_bytes(artifact: Artifact) -> int:
    """Return the bytes of packed weights on the device, in whole words for every tap."""
    program = gpu_program(compile_plan(artifact.plan, artifact.tensors))
    return sum(step.words.nbytes for step in program.steps if isinstance(step, ProductStep))


def logit_error(artifact: Artifact, batch: Tensor, answers: Tensor) -> float:
    """Return the squared difference from the reference runtime's logits, relative to theirs.

    ``batch (N, C, H, W)`` and ``answers (N, classes)`` are on the CPU; the first images count.
    """
    exact = ReferenceRuntime(artifact).run(batch[:CHECKED_IMAGES]).double()
    wrong = (answers[:CHECKED_IMAGES].double() - exact).square().sum()
    return float(wrong / exact.square().sum().clamp_min(torch.finfo(torch.float64).tiny))


def _replay(loaded: CudaRuntime, images: int) -> Run:
    return lambda: loaded.replay(images)
