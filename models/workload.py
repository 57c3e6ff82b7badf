"""What a network computes for one image, layer by layer, told without a single weight.

The network is built on torch's ``meta`` device, where tensors have shapes and no content, and run
there once: a net whose weights would fill hundreds of gigabytes is told in milliseconds.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final, Literal

import torch
from torch import Tensor, fx, nn

from models import registry
from models.layers import float32_bytes

Shape = tuple[int, ...]

_SUMS: Final = (operator.add, operator.iadd, torch.add)


@dataclass(frozen=True)
class LayerWork:
    """A convolution or linear layer.

    ``shape`` is its weight's, ``(N, C / groups, kh, kw)`` or ``(N, S)``; ``positions`` how many
    output positions an image gives it, 1 for a linear layer; ``geometry`` what the plan's node says
    of a convolution beside its kernel; ``has_residual`` whether a sum follows.
    """

    name: str
    kind: Literal["conv2d", "linear"]
    shape: Shape
    positions: int
    geometry: Mapping[str, Any]
    has_residual: bool = False

    @property
    def weights(self) -> int:
        """How many weights it has."""
        return prod(self.shape)

    @property
    def inputs(self) -> int:
        """How many weights one filter has."""
        return prod(self.shape[1:])

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.weights * self.positions


@dataclass(frozen=True)
class Workload:
    """A network's layers in the order of execution, and what goes with them.

    ``other_nodes`` are the plan's operators without weights, ``{"op": ...}`` each. ``elements`` is
    how many numbers all its values have for one image, ``peak_elements`` the most of one value;
    ``parameters`` counts what is trained, ``float_bytes`` all of it and the buffers in float32.
    """

    layers: tuple[LayerWork, ...]
    other_nodes: tuple[Mapping[str, Any], ...]
    elements: int
    peak_elements: int
    parameters: int
    float_bytes: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers for one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def weights(self) -> int:
        """Weights of all layers."""
        return sum(layer.weights for layer in self.layers)


def workload(
    name: str,
    *,
    channels: int,
    height: int,
    width: int,
    classes: int,
    parameters: Mapping[str, Any],
) -> Workload:
    """Return what architecture ``name`` computes for an image ``(channels, height, width)``.

    Raises:
        InvalidSpec: as `registry.build`.
    """
    with torch.device("meta"):
        network = registry.build(
            name,
            channels=channels,
            height=height,
            width=width,
            classes=classes,
            parameters=parameters,
        ).eval()
        image = torch.empty(1, channels, height, width)
    recorder = _Recorder(network)
    with torch.no_grad():
        recorder.run(image)
    return Workload(
        layers=tuple(recorder.layers.values()),
        other_nodes=tuple(recorder.others),
        elements=sum(recorder.sizes),
        peak_elements=max(recorder.sizes),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        float_bytes=float32_bytes(network),
    )


class _Tracer(fx.Tracer):
    """Sees every module without children as one node, whatever its class."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return next(m.children(), None) is None


class _Recorder(fx.Interpreter):
    """Runs a network node by node and notes what each was."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, graph=_Tracer().trace(network))
        self.layers: dict[str, LayerWork] = {}
        self.others: list[Mapping[str, Any]] = []
        self.sizes: list[int] = []

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.sizes.append(result.numel())
            self._note(n, result)
        return result

    def _note(self, node: fx.Node, result: Tensor) -> None:
        if node.op == "call_module":
            module = self.fetch_attr(str(node.target))
            if isinstance(module, nn.Conv2d | nn.Linear):
                layer = _layer(str(node.target), module, result, _is_summed(node))
                self.layers.setdefault(layer.name, layer)
            else:
                self.others += _nodes_of(module)
        elif node.op == "call_method" and node.target == "flatten":
            self.others.append({"op": "flatten"})


def _layer(name: str, module: nn.Conv2d | nn.Linear, result: Tensor, summed: bool) -> LayerWork:
    shape = tuple(module.weight.shape)
    if isinstance(module, nn.Linear):
        return LayerWork(name, "linear", shape, 1, {}, summed)
    geometry = {
        "kernel": module.kernel_size,
        "stride": module.stride,
        "padding": module.padding,
        "dilation": module.dilation,
        "groups": module.groups,
    }
    return LayerWork(name, "conv2d", shape, prod(result.shape[2:]), geometry, summed)


def _is_summed(node: fx.Node) -> bool:
    """Tell whether the layer's result, or its batch norm's, goes to a sum and nowhere else."""
    for _ in range(2):
        users = list(node.users)
        if len(users) != 1:
            return False
        (node,) = users
        if node.op == "call_function":
            return node.target in _SUMS
    return False


def _nodes_of(module: nn.Module) -> list[Mapping[str, Any]]:
    """Return the plan's operators that a module without layers becomes; most join their product."""
    match module:
        case nn.MaxPool2d():
            size = {"kernel": [module.kernel_size] * 2, "stride": [module.stride] * 2}
            return [{"op": "max_pool2d", **size}]
        case nn.AvgPool2d() | nn.AdaptiveAvgPool2d():
            return [{"op": "avg_pool2d", "kernel": [8, 8]}]
        case nn.Flatten():
            return [{"op": "flatten"}]
        case _ if hasattr(module, "before") and hasattr(module, "after"):
            padded = {"op": "pad_channels", "before": module.before, "after": module.after}
            return [{"op": "subsample", "stride": [2, 2]}, padded]
        case _:
            return []
