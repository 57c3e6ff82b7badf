"""From an exported torch graph to drafts of a plan's operators, one operation at a time.

The graph is what ``torch.export`` and ``run_decompositions({})`` leave of a network in eval mode:
a line of ATen operations on one input with a dynamic batch. `TRANSLATORS` lists all that are
understood; any other is refused by its name.
"""

import operator as python
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.export import ExportedProgram

from models.attributes import Activation
from models.fusion import Arrays, Draft
from models.graph import BinaryWeight, Translation, bound_arguments, refuse
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
    PadChannels,
    Quantize,
    Subsample,
)
from models.plan import INPUT
from models.quantization import quantize_straight_through
from store.errors import InvalidArtifact

Arguments = Mapping[str, Any]


def translate(
    program: ExportedProgram,
    binary: Mapping[str, BinaryWeight],
    input_shape: tuple[int, int, int],
) -> tuple[list[Draft], str, dict[str, str]]:
    """Return the drafts of ``program``, its output's name, and layers' names by their products.

    Raises:
        InvalidArtifact: naming the operation that a plan cannot hold.
    """
    signature = program.graph_signature
    parameters = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    contents = {**program.constants, **program.state_dict}
    work = Translation(binary, parameters, contents, shapes={INPUT: input_shape})
    output: str | None = None
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in signature.user_inputs:
                work.values[node] = INPUT
        elif node.op == "output":
            results = node.args[0]
            if not isinstance(results, list | tuple) or len(results) != 1:
                refuse(node, "of several tensors")
            output = work.value(node, results[0])
        elif node.target is python.getitem:
            _first_of(work, node)
        elif node.target in TRANSLATORS:
            TRANSLATORS[node.target](work, node, bound_arguments(node))
        elif not _harmless(node):
            refuse(node)
    if output is None or output == INPUT:
        raise InvalidArtifact("The network computes nothing.", field="spec.architecture")
    return work.drafts, output, work.layers


def _harmless(node: fx.Node) -> bool:
    """Tell whether ``node`` is about sizes or assertions and makes no tensor of its own."""
    return not isinstance(node.meta.get("val"), Tensor) and not isinstance(
        node.meta.get("val"), list | tuple
    )


def _first_of(work: Translation, node: fx.Node) -> None:
    """Batch norm gives a tuple of which only the first member means anything here."""
    if node.args[1] == 0:
        work.values[node] = work.value(node, node.args[0])


def _same(work: Translation, node: fx.Node, arguments: Arguments) -> None:
    work.values[node] = work.value(node, arguments["self"])


def _conv2d(work: Translation, node: fx.Node, arguments: Arguments) -> None:
    source = work.value(node, arguments["input"])
    layer, arrays = _weights(work, node, arguments)
    shape = work.tensor(node, arguments["weight"])[1].shape
    kernel = (shape[2], shape[3])
    dilation = _pair(arguments["dilation"])
    work.layers[node.name] = layer
    work.add(
        node,
        Conv2d(
            name=node.name,
            input=source,
            channels=shape[0],
            weight="bits" if "codes" in arrays else "float",
            bases=len(arrays["base_scale"]) if "base_scale" in arrays else 1,
            base_scale="base_scale" in arrays,
            affine=True,
            kernel=kernel,
            stride=_pair(arguments["stride"]),
            padding=_padding(node, arguments["padding"], kernel, dilation),
            dilation=dilation,
            groups=arguments["groups"],
        ),
        arrays,
    )


def _padding(
    node: fx.Node, padding: Any, kernel: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int]:
    if not isinstance(padding, str):
        return _pair(padding)
    if padding == "valid":
        return (0, 0)
    total = [dilation[i] * (kernel[i] - 1) for i in (0, 1)]
    if total[0] % 2 or total[1] % 2:
        refuse(node, "with a border that is wider on one side")
    return (total[0] // 2, total[1] // 2)


def _linear(work: Translation, node: fx.Node, arguments: Arguments) -> None:
    source = work.value(node, arguments["input"])
    layer, arrays = _weights(work, node, arguments)
    shape = work.tensor(node, arguments["weight"])[1].shape
    work.layers[node.name] = layer
    work.add(
        node,
        Linear(
            name=node.name,
            input=source,
            channels=shape[0],
            weight="bits" if "codes" in arrays else "float",
            bases=len(arrays["base_scale"]) if "base_scale" in arrays else 1,
            base_scale="base_scale" in arrays,
            affine=True,
        ),
        arrays,
    )


def _weights(work: Translation, node: fx.Node, arguments: Arguments) -> tuple[str, Arrays]:
    """Return the layer's name, its weights, and scale and bias as an affine map."""
    name, weight = work.tensor(node, arguments["weight"])
    if name in work.binary:
        binary = work.binary[name]
        if binary.scale.ndim == 1:
            affine = np.stack([binary.scale, binary.bias])
            return binary.layer, {"codes": binary.codes, "affine": affine}
        affine = np.stack([np.ones_like(binary.bias), binary.bias])
        return binary.layer, {
            "codes": binary.codes,
            "base_scale": binary.scale,
            "affine": affine,
        }
    bias = arguments["bias"]
    shift = np.zeros(len(weight)) if bias is None else _float64(work.tensor(node, bias)[1])
    affine = np.stack([np.ones(len(weight)), shift])
    layer = name.removesuffix(".weight")
    return layer, {"weight": weight.detach().numpy().astype(np.float32), "affine": affine}


def _batch_norm(work: Translation, node: fx.Node, arguments: Arguments) -> None:
    """``g * (x - mean) / sqrt(var + eps) + b`` as gain and shift per channel."""
    source = work.value(node, arguments["input"])
    mean = _float64(work.tensor(node, arguments["running_mean"])[1])
    variance = _float64(work.tensor(node, arguments["running_var"])[1])
    weight, bias = arguments["weight"], arguments["bias"]
    with np.errstate(divide="ignore", invalid="ignore"):  # refused once the map is complete
        gain = 1 / np.sqrt(variance + arguments["eps"])
    if weight is not None:
        gain = gain * _float64(work.tensor(node, weight)[1])
    shift = -gain * mean
    if bias is not None:
        shift = shift + _float64(work.tensor(node, bias)[1])
    work.add(node, Affine(name=node.name, input=source), {"affine": np.stack([gain, shift])})


def _quantize(work: Translation, node: fx.Node, arguments: Arguments) -> None:
    low, step = (work.tensor(node, arguments[key])[1].item() for key in ("low", "step"))
    source = work.value(node, arguments["x"])
    bits = arguments["bits"]
    work.add(node, Quantize(name=node.name, input=source, bits=bits, low=low, step=step))


def _activate(
    work: Translation, node: fx.Node, source: Any, activation: Activation, arrays: Arrays
) -> None:
    operator = Activate(name=node.name, input=work.value(node, source), activation=activation)
    work.add(node, operator, arrays)


def _relu(work: Translation, node: fx.Node, arguments: Arguments) -> None:
    _activate(work, node, arguments["self"], Activation("relu"), {})


def _relu6(work: Translation, node: fx.Node, arguments: Arguments) -> None:
    _activate(work, node, arguments["self"], Activation("hardtanh", 0.0, 6.0), {})


def _hardtanh(work: Translation, node: fx.Node, arguments: Arguments) -> None:
    low, high = float(arguments["min_val"]), float(arguments["max_val"])
    _activate(work, node, arguments["self"], Activation("hardtanh", low, high), {})


def _prelu(work: Translation, node: fx.Node, arguments: Arguments) -> None:
    slope = _float64(work.tensor(node, arguments["weight"])[1])
    channels = work.channels(node, arguments["self"])
    arrays = {"slope": np.broadcast_to(slope, (channels,))}
    _activate(work, node, arguments["self"], Activation("prelu"), arrays)


def _leaky_relu(work: Translation, node: fx.Node, arguments: Arguments) -> None:
    channels = work.channels(node, arguments["self"])
    arrays = {"slope": np.full(channels, float(arguments["negative_slope"]))}
    _activate(work, node, arguments["self"], Activation("prelu"), arrays)


def _add(work: Translation, node: fx.Node, arguments: Arguments) -> None:
    if arguments["alpha"] != 1:
        refuse(node, "with a factor")
    inputs = (work.value(node, arguments["self"]), work.value(node, arguments["other"]))
    if work.shapes[inputs[0]] != work.shapes[inputs[1]]:
        refuse(node, "of values of different shapes")
    work.add(node, Add(name=node.name, inputs=inputs))


def _max_pool2d(work: Translation, node: fx.Node, arguments: Arguments) -> None:
    if arguments["ceil_mode"] or _pair(arguments["dilation"]) != (1, 1):
        refuse(node, "with ceil_mode or dilation")
    kernel = _pair(arguments["kernel_size"])
    work.add(
        node,
        MaxPool2d(
            name=node.name,
            input=work.value(node, arguments["self"]),
            kernel=kernel,
            stride=_pair(arguments["stride"] or kernel),
            padding=_pair(arguments["padding"]),
        ),
    )


def _avg_pool2d(work: Translation, node: fx.Node, arguments: Arguments) -> None:
    padding = _pair(arguments["padding"])
    if arguments["ceil_mode"] or arguments["divisor_override"] is not None:
        refuse(node, "with ceil_mode or divisor_override")
    if padding != (0, 0) and not arguments["count_include_pad"]:
        refuse(node, "without counting its border")
    kernel = _pair(arguments["kernel_size"])
    work.add(
        node,
        AvgPool2d(
            name=node.name,
            input=work.value(node, arguments["self"]),
            kernel=kernel,
            stride=_pair(arguments["stride"] or kernel),
            padding=padding,
        ),
    )


def _adaptive_avg_pool2d(work: Translation, node: fx.Node, arguments: Arguments) -> None:
    source = work.value(node, arguments["self"])
    (_, height, width), (rows, columns) = work.shapes[source], _pair(arguments["output_size"])
    if height % rows or width % columns:
        refuse(node, f"from {height} x {width} to {rows} x {columns}, which does not divide")
    kernel = (height // rows, width // columns)
    if kernel == (1, 1):
        work.values[node] = source
    else:
        work.add(node, AvgPool2d(name=node.name, input=source, kernel=kernel, stride=kernel))


def _mean(work: Translation, node: fx.Node, arguments: Arguments) -> None:
    """The mean over rows and columns is one large window."""
    source = work.value(node, arguments["self"])
    shape = work.shapes[source]
    if len(shape) != 3 or {dim % 4 for dim in arguments["dim"] or ()} != {2, 3}:
        refuse(node, "over other axes than rows and columns")
    window = (shape[1], shape[2])
    work.add(node, AvgPool2d(name=node.name, input=source, kernel=window, stride=window))
    if not arguments["keepdim"]:
        work.add(node, Flatten(name=f"{node.name}_flat", input=node.name))


def _reshape(work: Translation, node: fx.Node, arguments: Arguments) -> None:
    """What leaves the shape, or makes a vector of a map, in the order C, H, W."""
    source = work.value(node, arguments["self"])
    before, after = work.shapes[source], tuple(node.meta["val"].shape[1:])
    if after == before:
        work.values[node] = source
    elif len(before) == 3 and len(after) == 1:
        work.add(node, Flatten(name=node.name, input=source))
    else:
        refuse(node, f"from {before} to {after}")


def _slice(work: Translation, node: fx.Node, arguments: Arguments) -> None:
    source = work.value(node, arguments["self"])
    shape = work.shapes[source]
    axis = arguments["dim"] % (len(shape) + 1)
    start, end, step = arguments["start"] or 0, arguments["end"], arguments["step"]
    to_the_end = end is None or (
        isinstance(end, int) and end >= (shape[axis - 1] if axis else 2**62)
    )
    if start != 0 or not to_the_end or (step != 1 and axis < 2):
        refuse(node, "with anything but a stride over rows or columns")
    if step == 1:
        work.values[node] = source
    else:
        stride = (step, 1) if axis == 2 else (1, step)
        work.add(node, Subsample(name=node.name, input=source, stride=stride))


def _pad(work: Translation, node: fx.Node, arguments: Arguments) -> None:
    source = work.value(node, arguments["self"])
    margins = [*arguments["pad"], 0, 0, 0, 0, 0, 0, 0, 0][:8]
    constant = arguments.get("mode", "constant") == "constant" and not arguments["value"]
    spatial, channel, batch = margins[:4], margins[4:6], margins[6:]
    if len(work.shapes[source]) != 3 or not constant or any(spatial + batch) or min(channel) < 0:
        refuse(node, "with anything but zeros for channels")
    if channel == [0, 0]:
        work.values[node] = source
    else:
        before, after = channel
        work.add(node, PadChannels(name=node.name, input=source, before=before, after=after))


def _cat(work: Translation, node: fx.Node, arguments: Arguments) -> None:
    inputs = tuple(work.value(node, tensor) for tensor in arguments["tensors"])
    if arguments["dim"] % (len(work.shapes[inputs[0]]) + 1) != 1:
        refuse(node, "along another axis than the channels")
    work.add(node, Concat(name=node.name, inputs=inputs))


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


def _float64(tensor: Tensor) -> NDArray[np.float64]:
    result: NDArray[np.float64] = tensor.detach().to(torch.float64).numpy()
    return result


_aten: Final = torch.ops.aten
_QUANTIZE: Final = quantize_straight_through._opoverload

TRANSLATORS: Final[Mapping[Any, Callable[[Translation, fx.Node, Arguments], None]]] = {
    _aten.conv2d.default: _conv2d,
    _aten.conv2d.padding: _conv2d,
    _aten.linear.default: _linear,
    _aten._native_batch_norm_legit_no_training.default: _batch_norm,
    _aten.relu.default: _relu,
    _aten.relu6.default: _relu6,
    _aten.hardtanh.default: _hardtanh,
    _aten.prelu.default: _prelu,
    _aten.leaky_relu.default: _leaky_relu,
    _aten.add.Tensor: _add,
    _aten.max_pool2d.default: _max_pool2d,
    _aten.avg_pool2d.default: _avg_pool2d,
    _aten.adaptive_avg_pool2d.default: _adaptive_avg_pool2d,
    _aten.mean.dim: _mean,
    _aten.view.default: _reshape,
    _aten._unsafe_view.default: _reshape,
    _aten.reshape.default: _reshape,
    _aten.flatten.using_ints: _reshape,
    _aten.squeeze.dims: _reshape,
    _aten.slice.Tensor: _slice,
    _aten.pad.default: _pad,
    _aten.constant_pad_nd.default: _pad,
    _aten.cat.default: _cat,
    _aten.clone.default: _same,
    _aten.alias.default: _same,
    _aten.contiguous.default: _same,
    _aten.detach.default: _same,
    _aten.dropout.default: _same,
    _QUANTIZE: _quantize,
}
