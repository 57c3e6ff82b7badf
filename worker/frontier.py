"""What a layer is fed for all calibration images, without computing the layers before it again.

Calibration goes through a network layer by layer and needs the input of each. A frontier keeps, for
every batch of images, the values that the rest of the network still reads, and moves them forward
node by node of the traced network: a whole calibration then costs one forward pass in place of one
half per layer. Nothing is written to disk; after a restart the first layer asked for is reached
from the images.

Where the values of all images do not fit in the memory that they may take, they are computed anew
for every layer, one batch at a time, and so they are for networks that cannot be traced. What comes
out is the same.
"""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from worker.activations import device_of, input_of

# Of the kept values of one network, in the machine's memory.
MOST_BYTES = 384 * 2**20

# Of a GPU's free memory, for each network: the rest is for statistics and the layers' results.
SHARE_OF_A_GPU = 0.25

Batches = Callable[[], Iterator[Tensor]]
Values = dict[fx.Node, Any]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_SUMS = (operator.add, operator.iadd, torch.add)


class Fed(NamedTuple):
    """What a layer is fed for one batch, and, where a residual block ends with it, the other side.

    ``other`` is what the block adds to the layer's result, as far as it is known before the layer.
    """

    input: Tensor
    other: Tensor | None


@dataclass(frozen=True)
class Block:
    """A residual block that ends in some layer: the batch norm between it and the sum, by name."""

    norm: str | None


class Frontier:
    """Keeps the inputs of one layer for each of some networks, for the images of ``batches``.

    Layers are asked for in the order of execution. What comes before the layer asked for last has
    to stay as it was; what comes behind may change, as long as modules keep their names.
    """

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._kept: dict[int, _Progress | None] = {}

    def inputs(self, network: nn.Module, name: str) -> Iterator[Fed]:
        """Yield what layer ``name`` of ``network`` is fed, batch by batch.

        Raises:
            InvalidSpec: the layer is not reached by a forward pass.
        """
        progress = self._progress(network)
        if progress is None or progress.position(name) is None:
            return (Fed(input_of(network, name, batch), None) for batch in self._batches())
        return progress.inputs(name, self._batches)

    def block(self, network: nn.Module, name: str) -> Block | None:
        """Return the residual block that ends in layer ``name``, all else in it being known.

        That is: the layer's result, or its batch norm's, goes to nothing but a sum, and the sum's
        other operand is computed before the layer is.
        """
        progress = self._progress(network)
        found = None if progress is None else progress.sum_behind(name)
        return None if found is None else found[0]

    def _progress(self, network: nn.Module) -> "_Progress | None":
        if id(network) not in self._kept:
            self._kept[id(network)] = _Progress.start(network)
        return self._kept[id(network)]


@dataclass
class _Progress:
    """How far one network has been computed: ``done`` nodes, and the values they left, by batch.

    Without ``values`` nothing is kept at present.
    """

    network: nn.Module  # kept alive, since it is known by its id
    nodes: list[fx.Node]
    last_use: dict[fx.Node, int]
    most_bytes: int
    done: int = 0
    values: list[Values] | None = None

    @classmethod
    def start(cls, network: nn.Module) -> "_Progress | None":
        """Trace ``network``; None where it cannot be traced."""
        try:
            nodes = list(_Tracer().trace(network).nodes)
        except Exception:
            # Which exception says so depends on what the network does.
            return None
        last_use = {
            source: position
            for position, node in enumerate(nodes)
            for source in node.all_input_nodes
        }
        return cls(network, nodes, last_use, _most_bytes(device_of(network)))

    def position(self, name: str) -> int | None:
        """Return where among the nodes layer ``name`` is first."""
        for position, node in enumerate(self.nodes):
            if node.op == "call_module" and node.target == name:
                return position
        return None

    def sum_behind(self, name: str) -> tuple[Block, fx.Node] | None:
        """Return the block that layer ``name`` ends, and the node of the sum's other operand."""
        position = self.position(name)
        if position is None:
            return None
        node, norm = self.nodes[position], None
        user = _only(node)
        if user is not None and user.op == "call_module":
            norm = str(user.target)
            if not isinstance(self.network.get_submodule(norm), _NORMS):
                return None
            node, user = user, _only(user)
        if user is None or user.op != "call_function" or user.target not in _SUMS:
            return None
        others = [one for one in user.args if one is not node]
        if len(others) != 1 or not isinstance(others[0], fx.Node) or user.kwargs:
            return None
        known = self.nodes.index(others[0]) < position
        return (Block(norm), others[0]) if known else None

    def inputs(self, name: str, batches: Batches) -> Iterator[Fed]:
        """Yield the layer's inputs; keep them, where they fit."""
        goal = self.position(name)
        assert goal is not None
        fed = self.nodes[goal].args[0]
        assert isinstance(fed, fx.Node)
        block = self.sum_behind(name)
        kept: list[Values] | None = []
        for values in self._values_before(goal, batches):
            if kept is not None:
                kept.append(values)
                if sum(map(_bytes, kept)) > self.most_bytes:
                    kept = None
            yield Fed(values[fed], None if block is None else values[block[1]])
        self.done, self.values = (goal, kept) if kept is not None else (0, None)

    def _values_before(self, goal: int, batches: Batches) -> Iterator[Values]:
        """Yield the values before node ``goal``, from what is kept or else from the images."""
        start, kept = self.done, self.values
        if kept is None or goal < start:
            start, kept = 0, None
        # Until all batches have been moved forward there is nothing to go on from.
        self.done, self.values = 0, None
        source = ({self.nodes[0]: batch} for batch in batches()) if kept is None else iter(kept)
        for values in source:
            self._run(values, start, goal)
            yield values

    def _run(self, values: Values, start: int, stop: int) -> None:
        """Compute the nodes from ``start`` to before ``stop``; forget what is read no more."""
        for position in range(start, stop):
            node = self.nodes[position]
            if node.op != "placeholder":
                values[node] = self._result(node, values)
            for source in (*node.all_input_nodes, node):
                if self.last_use.get(source, -1) <= position:
                    values.pop(source, None)

    def _result(self, node: fx.Node, values: Values) -> Any:
        arguments = fx.map_arg(node.args, values.__getitem__)
        named = fx.map_arg(node.kwargs, values.__getitem__)
        match node.op:
            case "call_module":
                return self.network.get_submodule(str(node.target))(*arguments, **named)
            case "call_function":
                return node.target(*arguments, **named)  # type: ignore[operator]
            case "call_method":
                return getattr(arguments[0], str(node.target))(*arguments[1:], **named)
            case _:
                return operator.attrgetter(str(node.target))(self.network)


class _Tracer(fx.Tracer):
    """Sees every module without children as one node, whatever its class."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return next(m.children(), None) is None


def _only(node: fx.Node) -> fx.Node | None:
    """Return the only node that reads ``node``."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _most_bytes(device: torch.device) -> int:
    """Return how much of the memory of ``device`` the values of one network may take."""
    if device.type == "cpu":
        return MOST_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return int(SHARE_OF_A_GPU * free)


def _bytes(values: Values) -> int:
    return sum(
        value.numel() * value.element_size()
        for value in values.values()
        if isinstance(value, Tensor)
    )
