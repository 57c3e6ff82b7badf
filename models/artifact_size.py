"""How large a network's artifact will be, foreseen from its shapes alone.

Tensors are told exactly: packed bits, per-channel floats, layers kept in float. The header is made
up as lowering would write it, names of a usual length included; what it cannot know (how many
further bases calibration will find useful, whether an affine map turns out to do nothing) moves the
result by less than the two percent that a test holds it to.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from models import canonical_json
from models.artifact import FORMAT, METADATA_KEY
from models.bits import row_bytes
from models.plan import OPSET
from models.workload import LayerWork, Workload

# A safetensors file begins with the header's length, and its header ends on a multiple of that.
_ALIGNMENT: Final = 8
_ANY_SCALE: Final = 0.012345678


@dataclass(frozen=True)
class PackedLayer:
    """How a layer is stored: ``bits`` per weight (32 is float), and the bytes of its tensors."""

    layer: LayerWork
    bits: int
    bytes: int

    @property
    def is_binary(self) -> bool:
        """Whether its weights are bits."""
        return self.bits < 32


def packed_layer(layer: LayerWork, *, bases: int) -> PackedLayer:
    """Return how ``layer`` is stored with so many bases; 0 keeps it in float."""
    size = sum(size for _, _, size in _tensors(layer, bases))
    return PackedLayer(layer, bases or 32, size)


def artifact_bytes(
    workload: Workload,
    layers: Collection[PackedLayer],
    *,
    activation_bits: int,
    heading: Mapping[str, Any],
) -> int:
    """Return the bytes of the artifact that holds ``layers``.

    ``heading`` has the header's other members: input, labels, provenance and accuracy.
    """
    nodes = [_node(one) for one in layers]
    nodes += [
        {**node, "input": "features.24", "name": f"{node['op']}_1"}
        for node in _others(workload, layers, activation_bits)
    ]
    plan = {"input_shape": [3, 32, 32], "nodes": nodes, "opset": OPSET, "output": "classifier"}
    text = canonical_json.dump({**heading, "format": FORMAT, "plan": plan})
    header: dict[str, Any] = {"__metadata__": {METADATA_KEY: text}}
    start = 0
    for one in layers:
        for name, shape, size in _tensors(one.layer, one.bits if one.is_binary else 0):
            dtype = "U8" if name.endswith(".bits") else "F32"
            offsets = [start, start + size]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
            start += size
    length = len(canonical_json.dump(header))
    return _ALIGNMENT + -(-length // _ALIGNMENT) * _ALIGNMENT + start


def _tensors(layer: LayerWork, bases: int) -> list[tuple[str, list[int], int]]:
    """Return name, shape and bytes of the layer's tensors; ``bases`` is 0 where it is float."""
    filters = layer.shape[0]
    found = [(f"{layer.name}.affine", [2, filters], 8 * filters)]
    if bases == 0:
        return [*found, (f"{layer.name}.weight", list(layer.shape), 4 * layer.weights)]
    if bases > 1:
        found.append((f"{layer.name}.base_scale", [bases, filters], 4 * bases * filters))
    row = row_bytes(layer.shape)
    return [*found, (f"{layer.name}.bits", [bases, filters, row], bases * filters * row)]


def _node(one: PackedLayer) -> dict[str, Any]:
    """Return the JSON of the layer's node, as `Plan.to_json` writes it."""
    layer = one.layer
    node: dict[str, Any] = {
        "op": layer.kind,
        "name": layer.name,
        "input": layer.name,
        "channels": layer.shape[0],
        "affine": True,
    }
    if layer.kind == "conv2d" or layer.positions > 1:
        node["activation"] = {"kind": "relu"}
    if layer.has_residual:
        node["residual"] = layer.name
    if not one.is_binary:
        node["weight"] = "float"
    elif one.bits > 1:
        node |= {"bases": one.bits, "base_scale": True}
    usual = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    for key, value in layer.geometry.items():
        if value != usual.get(key):
            node[key] = list(value) if isinstance(value, tuple) else value
    return node


def _others(
    workload: Workload, layers: Collection[PackedLayer], activation_bits: int
) -> list[Mapping[str, Any]]:
    found = list(workload.other_nodes)
    if activation_bits < 32:
        rounding = {"op": "quantize", "bits": activation_bits, "low": 0.0, "step": _ANY_SCALE}
        found += [rounding for one in layers if one.is_binary]
    return found
