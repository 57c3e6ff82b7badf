"""An exported torch graph on its way to a plan: what stands for what so far.

`models.translation` walks the graph and adds one draft per operation here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from models.fusion import Arrays, Draft
from models.operators import Operator, Shape
from store.errors import InvalidArtifact


@dataclass(frozen=True)
class BinaryWeight:
    """What a binary layer computes with.

    ``codes`` int8 ``(N, C / groups, kh, kw)`` or ``(N, S)``, ``scale`` float64 ``(N,)``; where the
    layer has several bases, both with a first axis of bases. ``bias`` float64 ``(N,)``.
    """

    layer: str  # its name in the network
    codes: NDArray[np.int8]
    scale: NDArray[np.float64]
    bias: NDArray[np.float64]


@dataclass
class Translation:
    """The drafts made so far, and which of them stands for which node of the graph.

    ``binary`` gives the weights of binary layers by the name of the parameter in whose place the
    exported graph has their codes.
    """

    binary: Mapping[str, BinaryWeight]
    parameters: Mapping[str, str]  # placeholder -> parameter's name
    contents: Mapping[str, Tensor]
    drafts: list[Draft] = field(default_factory=list)
    values: dict[fx.Node, str] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)  # product -> layer's name

    def add(self, node: fx.Node, made: Operator, arrays: Arrays | None = None) -> None:
        """Append a draft and let ``node`` stand for it."""
        shapes = [self.shapes[source] for source in made.sources]
        self.shapes[made.name] = made.output_shape(shapes)
        self.drafts.append(Draft(made, arrays or {}))
        self.values[node] = made.name

    def value(self, node: fx.Node, argument: Any) -> str:
        """Return the name of the value that ``argument`` stands for."""
        if not isinstance(argument, fx.Node) or argument not in self.values:
            refuse(node, "on something else than the network's activations")
        return self.values[argument]

    def tensor(self, node: fx.Node, argument: Any) -> tuple[str, Tensor]:
        """Return the name and contents of the parameter or buffer given as ``argument``."""
        if not isinstance(argument, fx.Node) or argument.name not in self.parameters:
            refuse(node, "with weights that are computed, not stored")
        name = self.parameters[argument.name]
        return name, self.contents[name]

    def channels(self, node: fx.Node, argument: Any) -> int:
        """Return the channels of a value."""
        return self.shapes[self.value(node, argument)][0]


def refuse(node: fx.Node, how: str = "") -> NoReturn:
    """Raise InvalidArtifact about an operation that a plan cannot hold."""
    raise InvalidArtifact(
        f"The network uses {node.target}{' ' + how if how else ''}, which a plan cannot express.",
        field="spec.architecture",
        remedy="Write the network with the operators that docs/FORMAT.md lists.",
    )


def bound_arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments by name, with defaults filled in."""
    arguments = {}
    for position, declared in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if position < len(node.args):
            arguments[declared.name] = node.args[position]
        else:
            arguments[declared.name] = node.kwargs.get(declared.name, declared.default_value)
    return arguments
