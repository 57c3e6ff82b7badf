"""How fast each kernel of the CPU engine computes the layers of the nets, one layer at a time.

The table look-up stands beside our own expansion of bits to int8, and beside its *ceiling*: what
the loop behind the kernel does on data that lies in the first-level cache. An int8 library is a
rival of whole networks: `benchmarks.latency.runtimes`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from models.artifact import Artifact
from models.runtime.compilation import compile_plan
from models.runtime.flat_program import Kind, Step, Type, Value
from models.runtime.native import NativeLibrary

# Kernels of packed bits by the activations they read; which there are depends on the kernel set.
KERNELS: Final[Mapping[str, Type]] = {
    "lookup_i16": Type.U8,
    "expand_i8": Type.U8,
    "expand_i16": Type.U8,
    "lookup_f32": Type.F32,
    "expand_f32": Type.F32,
}
_TURNS: Final = 5  # in which the kernels are timed, one after the other
_SECONDS: Final = 0.02  # for one kernel in one turn
_MOST_REPEATS: Final = 1000


@dataclass(frozen=True)
class Geometry:
    """What decides about the speed of a product; pairs are rows and columns."""

    channels: int
    height: int
    width: int
    filters: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    bases: int

    @property
    def output(self) -> tuple[int, int]:
        """Rows and columns of the result."""
        size = (self.height, self.width)
        rows, columns = (
            (size[i] + 2 * self.padding[i] - self.dilation[i] * (self.kernel[i] - 1) - 1)
            // self.stride[i]
            + 1
            for i in (0, 1)
        )
        return rows, columns

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        (rows, columns), (kernel_rows, kernel_columns) = self.output, self.kernel
        taps = self.channels // self.groups * kernel_rows * kernel_columns
        return self.bases * self.filters * taps * rows * columns

    @property
    def macs_inside(self) -> int:
        """Those of kernel rows that lie on the map: the engine leaves the others out."""
        reach = [row * self.stride[0] - self.padding[0] for row in range(self.output[0])]
        taps = range(0, self.dilation[0] * self.kernel[0], self.dilation[0])
        inside = sum(0 <= first + tap < self.height for first in reach for tap in taps)
        return self.macs * inside // (len(reach) * len(taps))

    def __str__(self) -> str:
        """Return a name that a figure can have, such as ``c64x56x56_n64_k3x3_s1x1_p1x1``."""
        parts = [
            f"c{self.channels}x{self.height}x{self.width}",
            f"n{self.filters}",
            f"k{self.kernel[0]}x{self.kernel[1]}",
            f"s{self.stride[0]}x{self.stride[1]}",
            f"p{self.padding[0]}x{self.padding[1]}",
        ]
        if self.dilation != (1, 1):
            parts.append(f"d{self.dilation[0]}x{self.dilation[1]}")
        parts += [f"{letter}{n}" for letter, n in (("g", self.groups), ("b", self.bases)) if n > 1]
        return "_".join(parts)


@dataclass(frozen=True)
class Layer:
    """A product as the engine computes it, and the value it reads."""

    step: Step
    source: Value

    @property
    def geometry(self) -> Geometry:
        """The product's geometry."""
        step, source = self.step, self.source
        return Geometry(
            channels=source.channels,
            height=source.height,
            width=source.width,
            filters=step.filters,
            kernel=(step.kernel_rows, step.kernel_columns),
            stride=(step.stride_rows, step.stride_columns),
            padding=(step.padding_rows, step.padding_columns),
            dilation=(step.dilation_rows, step.dilation_columns),
            groups=step.groups,
            bases=step.bases,
        )


def layers(artifact: Artifact) -> list[Layer]:
    """Return the products with packed bits of a plan, in their order."""
    program = compile_plan(artifact.plan, artifact.tensors)
    return [
        Layer(step, program.values[step.in0])
        for step in program.steps
        if step.kind == Kind.PRODUCT and step.row_bytes > 0
    ]


def distinct(found: Iterable[Layer]) -> dict[Geometry, list[Layer]]:
    """Return layers by geometry: one that reads codes and one that reads float32, where there are.

    Those with the same input in the same form are one.
    """
    chosen: dict[Geometry, dict[Type, Layer]] = {}
    for layer in found:
        chosen.setdefault(layer.geometry, {}).setdefault(layer.source.type, layer)
    return {geometry: list(by_type.values()) for geometry, by_type in chosen.items()}


def speeds(
    library: NativeLibrary, kernel_set: str, shapes: Mapping[Geometry, list[Layer]]
) -> dict[Geometry, dict[str, float]]:
    """Return the seconds of every shape for one image by kernel, in one thread.

    The kernels are timed by turns; those that cannot compute a shape are absent.
    """
    return {
        geometry: _seconds(library, kernel_set, of_shape) for geometry, of_shape in shapes.items()
    }


def network_seconds(
    of_network: Sequence[Layer], found: Mapping[Geometry, Mapping[str, float]]
) -> dict[str, float]:
    """Return the seconds that all layers of a network take, by kernel; its forms lie side by side.

    Of kernels that cannot compute all layers there is no sum; ``best_i8`` takes the faster integer
    kernel for each layer.
    """
    sums: dict[str, float] = {}
    for kernel, type_read in KERNELS.items():
        read = [layer.geometry for layer in of_network if layer.source.type == type_read]
        if read and all(kernel in found[geometry] for geometry in read):
            sums[kernel] = sum(found[geometry][kernel] for geometry in read)
    exact = [name for name, type_read in KERNELS.items() if type_read == Type.U8]
    best = [
        min(found[layer.geometry][kernel] for kernel in exact if kernel in found[layer.geometry])
        for layer in of_network
        if layer.source.type == Type.U8
    ]
    return sums | ({"best_i8": sum(best)} if best else {})


def _seconds(library: NativeLibrary, kernel_set: str, of_shape: list[Layer]) -> dict[str, float]:
    """Return the seconds of every kernel that can compute a layer of this shape."""

    def time(layer: Layer, kernel: int, repeats: int) -> float:
        return library.time_product(
            kernel_set, 1, layer.step, layer.source, kernel, images=1, repeats=repeats
        )

    repeats: dict[str, int] = {}
    candidates: dict[str, tuple[Layer, int]] = {}
    for layer in of_shape:
        names = library.kernel_names(kernel_set, layer.step, layer.source)
        for number, name in enumerate(names):
            once = time(layer, number, 1)
            if once > 0:
                candidates[name] = layer, number
                repeats[name] = min(max(round(_SECONDS / once), 1), _MOST_REPEATS)
    turns = [
        {name: time(*candidate, repeats[name]) for name, candidate in candidates.items()}
        for _ in range(_TURNS)
    ]
    return {name: median(turn[name] for turn in turns) for name in candidates}


def ceilings(library: NativeLibrary, kernel_set: str) -> dict[str, float]:
    """Return 10**9 multiply-accumulates per second of each kernel's loop, in one thread."""
    names = (*KERNELS, "multiply_f32")
    found = {name: library.ceiling(kernel_set, name) / 1e9 for name in names}
    return {name: speed for name, speed in found.items() if speed > 0}
