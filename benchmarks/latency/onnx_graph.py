"""A plan with float weights as an ONNX graph, so that a rival runs the very same network.

What a plan does in one node, ``activation(affine(product) + residual)``, becomes the nodes that
ONNX Runtime knows how to fuse: a convolution with gain and shift folded into weight and bias (in
float64, rounded once), ``Add``, ``Relu``. The batch size stays open.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.attributes import Activation
from models.operators import (
    Activate,
    Add,
    Affine,
    AvgPool2d,
    Concat,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    Operator,
    PadChannels,
    Subsample,
)
from models.plan import INPUT, Plan

OPSET: Final = 17
_IR_VERSION: Final = 9
_TO_THE_END: Final = np.iinfo(np.int64).max

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class _Step:
    """An ONNX node that takes the value before it, and ``others``, values or constants by name."""

    op: str
    others: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)


def onnx_model(plan: Plan, tensors: Tensors) -> onnx.ModelProto:
    """Return the model of ``plan``; its input is ``input`` (N, C, H, W), all is float32.

    Raises:
        ValueError: a node has no counterpart: packed bits, levels, or a border of ones.
    """
    graph = _Graph(plan, tensors)
    nodes = [made for node in plan.nodes for made in graph.nodes_of(node)]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", *plan.shapes[name]))
        for name in (INPUT, plan.output)
    ]
    return helper.make_model(
        helper.make_graph(nodes, "plan", values[:1], values[1:], graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="bitpress",
    )


class _Graph:
    """Turns one node after the other; ``constants`` are those that they read."""

    def __init__(self, plan: Plan, tensors: Tensors) -> None:
        self._plan = plan
        self._tensors = tensors
        self.constants: list[onnx.TensorProto] = []

    def nodes_of(self, node: Operator) -> list[onnx.NodeProto]:
        """Return the ONNX nodes that make the value ``node.name``, in order."""
        steps = list(self._steps(node))
        value, made = node.sources[0], []
        for number, step in enumerate(steps, start=1):
            result = node.name if number == len(steps) else f"{node.name}/{step.op}"
            made.append(
                helper.make_node(
                    step.op, [value, *step.others], [result], name=result, **step.attributes
                )
            )
            value = result
        return made

    def _steps(self, node: Operator) -> Iterator[_Step]:
        match node:
            case Conv2d() | Linear():
                yield self._product(node)
                if node.residual is not None:
                    yield _Step("Add", (node.residual,))
                yield from self._activation(node, node.activation)
            case MaxPool2d():
                yield _Step("MaxPool", (), _window(node))
            case AvgPool2d():
                yield self._average(node)
            case Affine():
                gain, shift = self._tensors[f"{node.name}.affine"]
                yield _Step("Mul", (self._per_channel(node, "gain", gain),))
                yield _Step("Add", (self._per_channel(node, "shift", shift),))
            case Activate():
                yield from self._activation(node, node.activation)
            case Add():
                yield _Step("Add", node.inputs[1:])
                yield from self._activation(node, node.activation)
            case Concat():
                yield _Step("Concat", node.inputs[1:], {"axis": 1})
            case Subsample():
                slices = {"starts": (0, 0), "ends": (_TO_THE_END,) * 2, "axes": (2, 3)}
                integers = (slices | {"steps": node.stride}).items()
                yield _Step("Slice", tuple(self._integers(node, *item) for item in integers))
            case PadChannels():
                pads = (0, node.before, 0, 0, 0, node.after, 0, 0)
                yield _Step("Pad", (self._integers(node, "pads", pads),))
            case Flatten():
                yield _Step("Flatten", (), {"axis": 1})
            case _:
                raise ValueError(f"node {node.name!r}: ONNX has no {node.op}")

    def _product(self, node: Conv2d | Linear) -> _Step:
        """``(gain * weight) . x + shift``."""
        if node.weight != "float":
            raise ValueError(f"node {node.name!r}: its weights are bits")
        weight = self._tensors[f"{node.name}.weight"].astype(np.float64)
        shift = np.zeros(len(weight))
        if node.affine:
            gain, shift = self._tensors[f"{node.name}.affine"].astype(np.float64)
            weight = weight * gain.reshape(-1, *[1] * (weight.ndim - 1))
        constants = (
            self._constant(f"{node.name}.weight", weight.astype(np.float32)),
            self._constant(f"{node.name}.bias", shift.astype(np.float32)),
        )
        if isinstance(node, Linear):
            return _Step("Gemm", constants, {"transB": 1})
        if node.pad_value and node.padding != (0, 0):
            raise ValueError(f"node {node.name!r}: its border is ones")
        window = _window(node) | {"dilations": node.dilation, "group": node.groups}
        return _Step("Conv", constants, window)

    def _average(self, node: AvgPool2d) -> _Step:
        # ONNX Runtime has a kernel of its own for the mean of a whole map.
        if node.kernel == self._plan.shapes[node.input][1:] and node.padding == (0, 0):
            return _Step("GlobalAveragePool")
        return _Step("AveragePool", (), _window(node) | {"count_include_pad": 1})

    def _activation(self, node: Operator, activation: Activation | None) -> Iterator[_Step]:
        match activation:
            case None:
                return
            case Activation(kind="relu"):
                yield _Step("Relu")
            case Activation(kind="hardtanh", low=low, high=high):
                bounds = {"low": low, "high": high}.items()
                yield _Step(
                    "Clip",
                    tuple(
                        self._constant(f"{node.name}.{end}", np.array(bound, np.float32))
                        for end, bound in bounds
                    ),
                )
            case _:
                slope = self._tensors[f"{node.name}.slope"]
                yield _Step("PRelu", (self._per_channel(node, "slope", slope),))

    def _per_channel(self, node: Operator, what: str, values: NDArray[Any]) -> str:
        """Add one number per channel of a node's value, and return its name."""
        axes = len(self._plan.shapes[node.name]) - 1
        return self._constant(f"{node.name}.{what}", values.reshape(-1, *[1] * axes))

    def _integers(self, node: Operator, what: str, values: tuple[int, ...]) -> str:
        return self._constant(f"{node.name}.{what}", np.array(values, np.int64))

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name


def _window(node: Conv2d | MaxPool2d | AvgPool2d) -> dict[str, Any]:
    return {
        "kernel_shape": node.kernel,
        "strides": node.stride,
        "pads": (*node.padding, *node.padding),
    }
