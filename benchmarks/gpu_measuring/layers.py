"""The layers of the networks one at a time, on each kind of activation, and as the rival has them.

A layer reads and keeps numbers of one kind, as in a network all of such layers: float16, 8-bit
levels, or signs. The rival is the library's product in half precision, the fastest that it finds
for the shape; of linear layers also the compiler's, and the faster of the two counts. Launches are
recorded in one graph, so that what is timed is the kernel, not its start. Input and result stay
where they are, so that those of small layers are found in the cache, for all kinds alike.

A linear layer of a few images does nothing but read its weights. Packed ones would be in the cache
after the first launch and the rival's would not: so launches take turns with many copies of large
weights, which no cache holds.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_measuring.laps import Run, by_turns, medians
from benchmarks.gpu_measuring.rival import MODE
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
from models.runtime.gpu_program import Finish, ProductStep, is_linear

# What each kind of activations is called in figures; which ceiling it has is the kind itself.
NAMES: Final[dict[str, ValueKind]] = {"w1a16": "f16", "w1a8": "i8", "w1a1": "b1"}
LIBRARY: Final = "fp16"
COMPILED: Final = "fp16_compiled"

_LAUNCHES: Final = 10  # of a layer in one graph, at least
_BEYOND_CACHES: Final = 1 << 27  # bytes
_MOST_COPIES: Final = 32
_FEW_IMAGES: Final = 8
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
    if is_linear(shape):
        rows, matrix, bias = _linear(shape, images, device)
        return lambda: F.linear(rows, matrix, bias)
    x = values(shape, images, "f16", device).permute(0, 3, 1, 2)
    weight = torch.randn(shape.filters, shape.group_channels, *shape.kernel, device=device).half()
    last = weight.contiguous(memory_format=torch.channels_last)
    bias = torch.zeros(shape.filters, dtype=torch.float16, device=device)
    geometry_of = (shape.stride, shape.padding, shape.dilation, shape.groups)
    return lambda: F.conv2d(x, last, bias, *geometry_of)


def compiled_launch(shape: ProductShape, images: int, device: torch.device) -> Launch:
    """Return a linear layer in half precision as the compiler makes it."""
    given = _linear(shape, images, device)
    function = _compiled_linear(shape, images)
    return lambda: function(*given)


@lru_cache(maxsize=1)
def _compiled_linear(shape: ProductShape, images: int) -> Callable[..., Tensor]:
    """Return one function for all copies of a layer's weights."""
    # After a few shapes the compiler would give up on the function, and run it as it is.
    torch.compiler.reset()
    return torch.compile(_half_linear, mode=MODE, dynamic=False)


def _half_linear(rows: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    return F.linear(rows, matrix, bias)


def copies(shape: ProductShape, images: int) -> int:
    """Return how many times a layer's weights are there, to be read in turn."""
    if not is_linear(shape) or images > _FEW_IMAGES:
        return 1
    packed = 4 * shape.filters * shape.tap_words * shape.bases
    return min(-(-_BEYOND_CACHES // packed), _MOST_COPIES)


def time_layer(
    step: ProductStep,
    images: int,
    kernels: Kernels,
    device: torch.device,
    seconds: float,
    record: Callable[[Sequence[Launch]], Run],
) -> dict[str, Timed]:
    """Time a layer's shape on every kind of activations and in half precision, by turns.

    ``record`` makes a run of some launches, one after the other.
    """
    shape = step.shape
    given = (shape, images, device)
    makers: dict[str, Callable[[], Launch]] = {LIBRARY: partial(library_launch, *given)}
    works: dict[str, tuple[Work, ValueKind]] = {LIBRARY: (float_work(shape, images), "f16")}
    if is_linear(shape) and device.type == "cuda":
        makers[COMPILED] = partial(compiled_launch, *given)
        works[COMPILED] = works[LIBRARY]
    for name, kind in NAMES.items():
        of_kind = on_kind(step, kind)
        makers[name] = partial(launch, of_kind, images, kernels, device)
        works[name] = (work(shape, images, kind, of_kind.finish.epilogue.kept), kind)
    times, count = copies(shape, images), max(copies(shape, images), _LAUNCHES)
    runs = {}
    for name, make in makers.items():
        launches = [make() for _ in range(times)]
        runs[name] = record([launches[number % times] for number in range(count)])
    found = medians(by_turns(runs, seconds))
    return {name: Timed(found[name] / count, *works[name]) for name in runs}


def in_a_graph(launches: Sequence[Launch]) -> Run:
    """Record launches in a CUDA graph; return what plays them back."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(stream):
        for launch_one in launches:
            launch_one()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for launch_one in launches:
            launch_one()
    return partial(_play, graph, launches)


def _play(graph: torch.cuda.CUDAGraph, _launches: Sequence[Launch]) -> None:
    # A graph knows addresses only: what lies there is kept alive by the launches.
    graph.replay()


def _linear(
    shape: ProductShape, images: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    rows = values(shape, images, "f16", device).flatten(1)
    matrix = torch.randn(shape.filters, shape.in_channels, device=device).half()
    return rows, matrix, torch.zeros(shape.filters, dtype=torch.float16, device=device)


def layer_figures(
    found: dict[ProductShape, dict[str, Timed]], images: int, ceilings: Ceilings
) -> dict[str, float]:
    """Return the figures of timed layers.

    ``layers.<geometry>.b<images>.<kernel>_ms``, ``_bytes`` and ``_operations``; ``_of_ceiling``,
    the least time that the card needs over the measured one; ``w1a8_vs_fp16`` and the like, how
    many times as fast as the faster rival.
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
        rivals = [timed[name].seconds for name in (LIBRARY, COMPILED) if name in timed]
        for name in NAMES:
            if name in timed and rivals:
                figures[f"{cell}.{name}_vs_{LIBRARY}"] = min(rivals) / timed[name].seconds
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
