"""The layers of the networks one at a time, on each kind of activation, and as the rival has them.

A layer reads and keeps numbers of one kind, as in a network all of such layers: float16, 8-bit
levels, or signs. The rival is the library's convolution in half precision, the fastest that it
finds for the shape. Every launch is recorded several times in one graph, so that what is timed is
the kernel, not its start; input and result stay where they are, so that those of small layers are
found in the cache, for all kinds alike.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_measuring.laps import Run, by_turns, medians
from benchmarks.gpu_measuring.roofline import Ceilings, Work, float_work, geometry, work
from models.artifact import Artifact
from models.attributes import Activation
from models.kernels.product_shape import (
    WORD_BITS,
    Epilogue,
    Levels,
    ProductShape,
    ProductTensors,
    ValueKind,
)
from models.runtime.compilation import compile_plan
from models.runtime.gpu_compilation import gpu_program
from models.runtime.gpu_execution import Kernels, Launch
from models.runtime.gpu_program import Finish, ProductStep

# What each kind of activations is called in figures; which ceiling it has is the kind itself.
NAMES: Final[dict[str, ValueKind]] = {"w1a16": "f16", "w1a8": "i8", "w1a1": "b1"}
LIBRARY: Final = "fp16"

_LAUNCHES: Final = 10  # of a layer in one graph
_LEVELS: Final = Levels(bits=8, low=0.0, step=1.0, zero=0)
_DTYPES: Final = {"f16": torch.float16, "f32": torch.float32, "i8": torch.int8, "b1": torch.int32}


@dataclass(frozen=True)
class Timed:
    """A kernel on a layer's shape: its seconds, what it does, and which ceiling it has."""

    seconds: float
    work: Work
    kind: ValueKind


def layers(artifacts: Iterable[Artifact]) -> dict[ProductShape, ProductStep]:
    """Return a product of packed bits for each distinct shape, in the order of the plans."""
    found: dict[ProductShape, ProductStep] = {}
    for artifact in artifacts:
        program = gpu_program(compile_plan(artifact.plan, artifact.tensors))
        for step in program.steps:
            if isinstance(step, ProductStep):
                found.setdefault(step.shape, step)
    return found


def on_kind(step: ProductStep, kind: ValueKind) -> ProductStep:
    """Return a product of the same weights that reads and keeps ``kind``.

    It has an affine, and a ReLU unless it keeps signs. Signs that do not fill words are kept as
    float16.
    """
    filters = step.shape.filters
    kept: ValueKind = "f16" if kind == "b1" and filters % WORD_BITS else kind
    epilogue = Epilogue(
        read=kind,
        kept=kept,
        read_levels=_LEVELS if kind == "i8" else None,
        kept_levels=_LEVELS if kept == "i8" else None,
        affine=True,
        activation=None if kept == "b1" else Activation("relu"),
    )
    affine = torch.stack([torch.full((filters,), 0.01), torch.zeros(filters)])
    return replace(step, finish=Finish(epilogue, ProductTensors(affine=affine)))


def values(shape: ProductShape, images: int, kind: ValueKind, device: torch.device) -> Tensor:
    """Return what a product of that shape is fed: random numbers of the kind, channels last."""
    generator = torch.Generator(device=device).manual_seed(0)
    channels = -(-shape.in_channels // WORD_BITS) if kind == "b1" else shape.in_channels
    sizes = (images, *shape.in_hw, channels)
    match kind:
        case "f16" | "f32":
            return torch.randn(sizes, generator=generator, device=device).to(_DTYPES[kind])
        case "i8":
            return torch.randint(
                -128, 128, sizes, generator=generator, device=device, dtype=torch.int8
            )
        case "b1":
            words = torch.randint(
                -(2**31), 2**31, sizes, generator=generator, device=device, dtype=torch.int32
            )
            if shape.in_channels % WORD_BITS:
                words[..., -1] &= (1 << shape.in_channels % WORD_BITS) - 1
            return words


def launch(step: ProductStep, images: int, kernels: Kernels, device: torch.device) -> Launch:
    """Return what computes a product on random numbers whenever it is called."""
    epilogue = step.finish.epilogue
    x = values(step.shape, images, epilogue.read, device)
    out_shape = step.shape.out_shape(images, epilogue.kept)
    out = torch.empty(out_shape, dtype=_DTYPES[epilogue.kept], device=device)
    return kernels.product(step, device).bind(x, None, out)


def library_launch(shape: ProductShape, images: int, device: torch.device) -> Launch:
    """Return the library's product in half precision, with its bias, whenever it is called."""
    x = values(shape, images, "f16", device).permute(0, 3, 1, 2)
    weight = torch.randn(shape.filters, shape.group_channels, *shape.kernel, device=device).half()
    bias = torch.zeros(shape.filters, dtype=torch.float16, device=device)
    if shape.in_hw == shape.kernel == (1, 1) and shape.groups == 1:
        rows, matrix = x.flatten(1), weight.flatten(1)
        return lambda: F.linear(rows, matrix, bias)
    last = weight.contiguous(memory_format=torch.channels_last)
    geometry_of = (shape.stride, shape.padding, shape.dilation, shape.groups)
    return lambda: F.conv2d(x, last, bias, *geometry_of)


def time_layer(
    step: ProductStep,
    images: int,
    kernels: Kernels,
    device: torch.device,
    seconds: float,
    record: Callable[[Launch], Run],
) -> dict[str, Timed]:
    """Time a layer's shape on every kind of activations and in the library, by turns.

    ``record`` makes of a launch a run of `_LAUNCHES` of them.
    """
    shape = step.shape
    runs: dict[str, Run] = {LIBRARY: record(library_launch(shape, images, device))}
    works: dict[str, tuple[Work, ValueKind]] = {LIBRARY: (float_work(shape, images), "f16")}
    for name, kind in NAMES.items():
        of_kind = on_kind(step, kind)
        runs[name] = record(launch(of_kind, images, kernels, device))
        works[name] = (work(shape, images, kind, of_kind.finish.epilogue.kept), kind)
    times = medians(by_turns(runs, seconds))
    return {name: Timed(times[name] / _LAUNCHES, *works[name]) for name in runs}


def in_a_graph(one: Launch) -> Run:
    """Record `_LAUNCHES` launches in a CUDA graph; return what plays them back."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(stream):
        one()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        for _ in range(_LAUNCHES):
            one()
    return graph.replay


def layer_figures(
    found: dict[ProductShape, dict[str, Timed]], images: int, ceilings: Ceilings
) -> dict[str, float]:
    """Return the figures of timed layers.

    ``layers.<geometry>.b<images>.<kernel>_ms``, ``_bytes`` and ``_operations``; ``_of_ceiling``,
    the least time that the card needs over the measured one; ``w1a8_vs_fp16`` and the like, how
    many times as fast.
    """
    figures: dict[str, float] = {}
    for shape, timed in found.items():
        cell = f"layers.{geometry(shape)}.b{images}"
        for name, one in timed.items():
            figures[f"{cell}.{name}_ms"] = 1000 * one.seconds
            figures[f"{cell}.{name}_bytes"] = one.work.bytes
            figures[f"{cell}.{name}_operations"] = one.work.operations
            if one.kind in ceilings.operations_per_s:
                least = one.work.least_seconds(ceilings, one.kind)
                figures[f"{cell}.{name}_of_ceiling"] = least / one.seconds
        for name in NAMES:
            if name in timed and LIBRARY in timed:
                figures[f"{cell}.{name}_vs_{LIBRARY}"] = (
                    timed[LIBRARY].seconds / timed[name].seconds
                )
    return figures | _signs_against_bytes(found, images)


def _signs_against_bytes(
    found: dict[ProductShape, dict[str, Timed]], images: int
) -> dict[str, float]:
    """Return how many times as fast signs are as bytes, where channels fill words of signs.

    ``layers.b<images>.w1a1_vs_w1a8`` is the time of all such layers, each once, over that on signs.
    """
    both = [
        timed
        for shape, timed in found.items()
        if shape.in_channels % WORD_BITS == 0 and {"w1a1", "w1a8"} <= set(timed)
    ]
    if not both:
        return {}
    bytes_, signs = (sum(timed[name].seconds for timed in both) for name in ("w1a8", "w1a1"))
    return {f"layers.b{images}.w1a1_vs_w1a8": bytes_ / signs}
