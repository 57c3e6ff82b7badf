"""In which forms the values of a plan have to exist: as numbers, as a quantizer's codes, or both.

A plan says what is computed. What is written to memory is up to the runtime: a ``quantize`` node
whose result is read by products of levels alone never exists as numbers, its codes are what its
producer writes; a ``flatten`` of one pixel is that pixel; a linear layer behind ``flatten`` reads
the map itself. Here the plan is walked from its output back to its input, and what every node reads
is noted down.

Quantizing never puts a smaller number above a larger one, so it may as well come before a max
pool: where a pool is read by one quantizer only, the pool's own input is quantized and the pool
works on codes.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from models.operators import (
    MAX_KERNEL,
    Activate,
    Add,
    Affine,
    AvgPool2d,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    Operator,
    Quantize,
    Shape,
)
from models.plan import Plan
from models.runtime.levels import fed_levels


@dataclass(frozen=True)
class Codes:
    """A quantizer's ``bits``, ``low`` and ``step``, the latter two as float32 has them."""

    bits: int
    low: float
    step: float

    @classmethod
    def of(cls, node: Quantize) -> "Codes":
        return cls(node.bits, float(np.float32(node.low)), float(np.float32(node.step)))


@dataclass(frozen=True)
class Form:
    """A value as it lies in memory: float32 where ``codes`` is None, else uint8 codes.

    ``value`` is a value of the plan. Of a ``quantize`` node it means the numbers it gives; its
    codes are a form of the value that it reads.
    """

    value: str
    codes: Codes | None = None


# Those whose value can come as codes without a step more.
_ROUNDED: Final = (Conv2d, Linear, MaxPool2d, AvgPool2d, Affine, Activate, Add, Quantize)


@dataclass(frozen=True)
class Forms:
    """Which forms of which values are read.

    ``reads`` gives what every node that has to be computed reads, in the order of its sources;
    nodes that are missing cost nothing. ``numbers`` are the values read as float32, ``codes`` the
    quantizers through which values are read. ``output`` is the form of the plan's output.
    """

    reads: Mapping[str, tuple[Form, ...]]
    numbers: frozenset[str]
    codes: Mapping[str, tuple[Codes, ...]]
    output: Form


def needed_forms(plan: Plan) -> Forms:
    """Return the forms of its values that computing ``plan`` takes."""
    walk = _Walk(plan)
    output = walk.numbers_of(plan.output)
    walk.need(output)
    for node in reversed(plan.nodes):
        walk.visit(node)
    codes = {value: tuple(found) for value, found in walk.codes.items()}
    return Forms(walk.reads, frozenset(walk.numbers), codes, output)


@dataclass
class _Walk:
    plan: Plan
    numbers: set[str] = field(default_factory=set)
    codes: dict[str, list[Codes]] = field(default_factory=lambda: defaultdict(list))
    reads: dict[str, tuple[Form, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._nodes = {node.name: node for node in self.plan.nodes}
        self._fed_levels = fed_levels(self.plan)
        self._readers: dict[str, set[str]] = defaultdict(set)
        for node in self.plan.nodes:
            for source in node.sources:
                self._readers[source].add(node.name)

    def need(self, form: Form) -> None:
        if form.codes is None:
            self.numbers.add(form.value)
        elif form.codes not in self.codes[form.value]:
            self.codes[form.value].append(form.codes)

    def visit(self, node: Operator) -> None:
        """Note what ``node`` reads, if any form of its own value is read; all readers were here."""
        if node.name not in self.numbers and not self.codes.get(node.name):
            return
        forms = self._forms_read(node)
        self.reads[node.name] = forms
        for form in forms:
            self.need(form)

    def numbers_of(self, value: str) -> Form:
        """The form in which ``value`` is read as numbers."""
        node = self._nodes.get(value)
        if isinstance(node, Flatten) and self.plan.shapes[node.input][1:] == (1, 1):
            return self.numbers_of(node.input)
        return Form(value)

    def _forms_read(self, node: Operator) -> tuple[Form, ...]:
        match node:
            case Conv2d() | Linear():
                rest = () if node.residual is None else (self.numbers_of(node.residual),)
                return (self._multiplied(node), *rest)
            case Quantize():
                return (self._codes_of(node),)
            case MaxPool2d() if self._pools_codes(node):
                return (Form(self.numbers_of(node.input).value, self.codes[node.name][0]),)
            case Affine() | Activate() | Add():
                # Steps element by element can read codes as numbers, as their first source.
                first, *others = node.sources
                source = self._nodes.get(first)
                if isinstance(source, Quantize):
                    return (self._codes_of(source), *map(self.numbers_of, others))
        return tuple(self.numbers_of(source) for source in node.sources)

    def _multiplied(self, node: Conv2d | Linear) -> Form:
        """What a product multiplies its weights with."""
        quantizer = self._fed_levels.get(node.name)
        source = node.input if quantizer is None else quantizer.input
        if isinstance(node, Linear):
            flattened = self._nodes.get(source)
            if isinstance(flattened, Flatten) and is_kernel(self.plan.shapes[flattened.input]):
                source = flattened.input
        codes = None if quantizer is None else Codes.of(quantizer)
        return Form(self.numbers_of(source).value, codes)

    def _codes_of(self, node: Quantize) -> Form:
        return Form(self.numbers_of(node.input).value, Codes.of(node))

    def _pools_codes(self, node: MaxPool2d) -> bool:
        """Whether nothing is lost where the pool's input exists as codes of one quantizer alone."""
        source = self._nodes.get(node.input)
        return (
            node.name not in self.numbers
            and len(self.codes[node.name]) == 1
            and self._readers[node.input] == {node.name}
            and (source is None or isinstance(source, _ROUNDED))
        )


def is_kernel(shape: Shape) -> bool:
    """Tell whether a convolution's kernel can be as large as a map ``(C, H, W)``."""
    return max(shape[1:]) <= MAX_KERNEL
