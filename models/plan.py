"""The inference program as data: a flat list of operators, each reading values made before it.

A `Plan` that exists is valid. Making one checks every attribute, that names are unique, that a
node reads only the input and earlier nodes (so nothing dangles and nothing runs in a circle), that
every node but the last is read, that shapes fit, and that sizes stay in bounds; whatever fails is
an `InvalidArtifact` naming the node and the defect. The JSON form may come from a file that nobody
vouches for.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from math import prod
from types import MappingProxyType
from typing import Any, Final, NoReturn

from models.attributes import Activation, integer, name
from models.operators import MAX_ELEMENTS, OPERATORS, Operator, Shape, TensorSpec
from store.errors import InvalidArtifact

OPSET: Final = 1
INPUT: Final = "input"  # the name of the value that is the network's input

MAX_NODES: Final = 4096
MAX_LIVE_ELEMENTS: Final = 1 << 28  # of all values alive at once, per image: 1 GiB of float32
MAX_MACS: Final = 1 << 40  # of the whole plan, per image

_read_size: Final = integer(1, MAX_ELEMENTS)


@dataclass(frozen=True)
class Plan:
    """A network: ``input_shape (C, H, W)``, ``nodes`` in order, and the value that is its output.

    ``shapes`` gives every value's shape per image; ``tensors`` every tensor the plan needs, by
    name: the node's name, a dot, and the operator's suffix; ``last_reader`` the node after which
    a value is not needed any more; ``peak_elements`` the most numbers per image that are alive at
    once when values are dropped then; ``macs`` the multiply-accumulates per image.

    Raises:
        InvalidArtifact: naming the node and the defect.
    """

    input_shape: tuple[int, int, int]
    nodes: tuple[Operator, ...]
    output: str
    shapes: Mapping[str, Shape] = field(init=False, repr=False, compare=False)
    tensors: Mapping[str, TensorSpec] = field(init=False, repr=False, compare=False)
    last_reader: Mapping[str, str] = field(init=False, repr=False, compare=False)
    peak_elements: int = field(init=False, repr=False, compare=False)
    macs: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        shapes: dict[str, Shape] = {INPUT: _input_shape(self.input_shape)}
        tensors: dict[str, TensorSpec] = {}
        macs = 0
        if not 1 <= len(self.nodes) <= MAX_NODES:
            _refuse(f"A plan has 1 to {MAX_NODES} nodes, not {len(self.nodes)}.")
        for node in self.nodes:
            _check_attributes(node)
            if node.name in shapes:
                node.refuse("its name is taken")
            for source in node.sources:
                if source not in shapes:
                    node.refuse(f"reads {source!r}, which no earlier node makes")
            sources = [shapes[source] for source in node.sources]
            shape = node.output_shape(sources)
            if prod(shape) > MAX_ELEMENTS:
                node.refuse(f"makes {prod(shape)} numbers per image, over {MAX_ELEMENTS}")
            macs += node.macs(sources)
            if macs > MAX_MACS:
                node.refuse(f"the plan needs over {MAX_MACS} multiply-accumulates per image")
            shapes[node.name] = shape
            tensors |= {
                f"{node.name}.{suffix}": spec for suffix, spec in node.tensors(sources).items()
            }
        _check_use(self.nodes, self.output)
        last_reader = {source: node.name for node in self.nodes for source in node.sources}
        derived = {
            "shapes": MappingProxyType(shapes),
            "tensors": MappingProxyType(tensors),
            "last_reader": MappingProxyType(last_reader),
            "peak_elements": _peak_elements(self.nodes, shapes, last_reader),
            "macs": macs,
        }
        for key, value in derived.items():
            object.__setattr__(self, key, value)

    @property
    def output_shape(self) -> Shape:
        """The shape of the result for one image."""
        return self.shapes[self.output]

    def source_shapes(self, node: Operator) -> list[Shape]:
        """Return the shapes of the values that ``node`` reads."""
        return [self.shapes[source] for source in node.sources]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; attributes at their default are left out."""
        return {
            "opset": OPSET,
            "input_shape": list(self.input_shape),
            "nodes": [_node_to_json(node) for node in self.nodes],
            "output": self.output,
        }

    @classmethod
    def from_json(cls, data: Any) -> "Plan":
        """Return the plan of an untrusted JSON value.

        Raises:
            InvalidArtifact: naming the defect: an unknown opset, operator or attribute, a value of
                the wrong type or out of range, or whatever a `Plan` refuses.
        """
        if not isinstance(data, dict):
            _refuse("The plan is not an object.")
        opset = data.get("opset")
        if type(opset) is not int or opset != OPSET:
            _refuse(
                f"The plan is of opset {opset!r:.60}; this release reads opset {OPSET}.",
                remedy="Use the release of bitpress that wrote it, or a later one.",
            )
        members = {"opset", "input_shape", "nodes", "output"}
        if set(data) != members:
            odd = ", ".join(sorted(f"{key!r:.60}" for key in set(data) ^ members))
            _refuse(f"The plan has missing or unknown members: {odd}.")
        if not isinstance(data["nodes"], list) or len(data["nodes"]) > MAX_NODES:
            _refuse(f"The plan's nodes are not a list of at most {MAX_NODES}.")
        nodes = tuple(_node_from_json(node, i) for i, node in enumerate(data["nodes"]))
        if not isinstance(data["output"], str):
            _refuse("The plan's output is not a name.")
        return cls(_input_shape(data["input_shape"]), nodes, data["output"])


def _refuse(detail: str, remedy: str | None = None) -> NoReturn:
    raise InvalidArtifact(detail, field="plan", remedy=remedy)


def _input_shape(value: Any) -> tuple[int, int, int]:
    if not isinstance(value, list | tuple) or len(value) != 3:
        _refuse("The plan's input shape is not (C, H, W).")
    try:
        channels, height, width = (_read_size(size) for size in value)
    except ValueError as error:
        _refuse(f"A size of the plan's input shape {error}.")
    if channels * height * width > MAX_ELEMENTS:
        _refuse(f"The plan's input holds over {MAX_ELEMENTS} numbers.")
    return (channels, height, width)


def _check_attributes(node: Operator) -> None:
    """Hold attributes set in Python to the rules for those read from JSON."""
    if OPERATORS.get(node.op) is not type(node):
        _refuse(f"{type(node).__name__} is not an operator of opset {OPSET}.")
    for attribute in fields(node):
        value = getattr(node, attribute.name)
        try:
            normal = attribute.metadata["reader"](value)
        except ValueError as error:
            node.refuse(f"{attribute.name} {error}")
        if type(normal) is not type(value) or normal != value:
            node.refuse(f"{attribute.name} must be written as {normal!r}")


def _check_use(nodes: tuple[Operator, ...], output: str) -> None:
    read = {source for node in nodes for source in node.sources}
    names = [node.name for node in nodes]
    if output not in names:
        _refuse(f"The plan's output {output!r:.250} is not made by any node.")
    for node in nodes:
        if node.name != output and node.name not in read:
            node.refuse("nothing reads its result")
    if output in read:
        _refuse(f"The plan's output {output!r} is read by a node.")


def _peak_elements(
    nodes: tuple[Operator, ...], shapes: Mapping[str, Shape], last_reader: Mapping[str, str]
) -> int:
    live = peak = prod(shapes[INPUT])
    for node in nodes:
        live += prod(shapes[node.name])
        peak = max(peak, live)
        if peak > MAX_LIVE_ELEMENTS:
            node.refuse(f"over {MAX_LIVE_ELEMENTS} numbers per image are alive at once")
        read_last = {source for source in node.sources if last_reader[source] == node.name}
        live -= sum(prod(shapes[source]) for source in read_last)
    return peak


def _node_to_json(node: Operator) -> dict[str, Any]:
    members: dict[str, Any] = {"op": node.op}
    for attribute in fields(node):
        value = getattr(node, attribute.name)
        if value != attribute.default:
            members[attribute.name] = _value_to_json(value)
    return members


def _value_to_json(value: Any) -> Any:
    if isinstance(value, Activation):
        return value.to_json()
    return list(value) if isinstance(value, tuple) else value


def _node_from_json(data: Any, index: int) -> Operator:
    if not isinstance(data, dict):
        _refuse(f"Node {index} of the plan is not an object.")
    op = data.get("op")
    if not isinstance(op, str) or op not in OPERATORS:
        _refuse(
            f"Node {index} of the plan has the operator {op!r:.60}, "
            f"which is not in opset {OPSET}: {', '.join(OPERATORS)}."
        )
    try:
        label = name(data.get("name"))
    except ValueError as error:
        _refuse(f"The name of node {index} of the plan {error}.")
    kind = OPERATORS[op]
    known = {attribute.name: attribute for attribute in fields(kind)}
    where = f"Node {label!r} ({op})"
    for key in data:
        if key != "op" and key not in known:
            _refuse(f"{where}: there is no attribute {key!r:.60}.")
    values: dict[str, Any] = {}
    for key, attribute in known.items():
        if key in data:
            try:
                values[key] = attribute.metadata["reader"](data[key])
            except ValueError as error:
                _refuse(f"{where}: {key} {error}.")
        elif attribute.default is MISSING:
            _refuse(f"{where}: the attribute {key} is missing.")
    return kind(**values)
