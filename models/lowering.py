"""From a trained network to a plan and its tensors.

1. Binary layers are swapped, in a copy, for plain ones that hold their codes; scales and biases are
   put aside. What is exported is then a network of ordinary layers.
2. ``torch.export`` in eval mode turns it into a graph, with a batch of two as the example (one
   image would be taken for a constant) and a dynamic batch.
3. `models.translation` reads the graph, `models.fusion` joins batch norm, residual sums and
   activations to the product before them.
4. Scale, bias and batch norm have become one gain and one shift per output channel, composed in
   float64. They are rounded here, once, to float32.

The rule for both kinds of layer is one: weights stay what they were trained to be (codes packed,
floats untouched), everything per channel goes to the node's ``affine`` tensor.
"""

import copy
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import Dim, ExportedProgram

from models import bits
from models.fusion import Draft, fuse, renamed, without_dead, without_repeated_quantizers
from models.graph import BinaryWeight
from models.layers import BinaryConv2d, BinaryLinear, plain_layer, replace_layer
from models.operators import Conv2d, Linear, Operator
from models.plan import INPUT, Plan
from models.translation import translate
from store.errors import InvalidArtifact


def lower(
    module: nn.Module, input_shape: tuple[int, int, int]
) -> tuple[Plan, dict[str, NDArray[Any]]]:
    """Return the plan of ``module`` for images ``(C, H, W)``, and the tensors it needs by name.

    Nodes with weights bear their layer's name (``features.0``), others their operator's
    (``max_pool2d_1``). ``module`` is not changed; what it computes in eval mode is what counts.

    Raises:
        InvalidArtifact: naming the operation that a plan cannot hold.
    """
    plain, binary = _with_plain_layers(module)
    program = _export(plain, input_shape)
    drafts, output, layers = translate(program, binary, input_shape)
    drafts = without_repeated_quantizers(without_dead(drafts, output))
    drafts, output = fuse(drafts, output)
    names = _readable_names(drafts, layers)
    nodes: list[Operator] = []
    tensors: dict[str, NDArray[Any]] = {}
    for draft in drafts:
        node, arrays = _finished(draft)
        nodes.append(renamed(node, names))
        tensors |= {f"{nodes[-1].name}.{suffix}": array for suffix, array in arrays.items()}
    return Plan(input_shape, tuple(nodes), names[output]), tensors


def _with_plain_layers(module: nn.Module) -> tuple[nn.Module, dict[str, BinaryWeight]]:
    """Return a copy with plain layers only, and the binary weights by parameter name."""
    plain = copy.deepcopy(module).cpu().float().eval()
    binary: dict[str, BinaryWeight] = {}
    swapped: dict[nn.Module, nn.Module] = {}
    # A layer that is registered twice has to be swapped under both of its names.
    for name, layer in list(plain.named_modules(remove_duplicate=False)):
        if not isinstance(layer, BinaryConv2d | BinaryLinear):
            continue
        if layer not in swapped:
            swapped[layer] = _plain_form(layer)
        if name:
            replace_layer(plain, name, swapped[layer])
        else:
            plain = swapped[layer]
        parameter = "weight" if layer.input_quantizer is None else "1.weight"
        binary[f"{name}.{parameter}".removeprefix(".")] = _binary_weight(name or "weight", layer)
    return plain.requires_grad_(False), binary


def _plain_form(layer: BinaryConv2d | BinaryLinear) -> nn.Module:
    """Return a layer that holds the codes, behind the quantizer of what ``layer`` is fed."""
    plain = plain_layer(layer)
    if layer.input_quantizer is None:
        return plain
    return nn.Sequential(layer.input_quantizer, plain)


def _binary_weight(name: str, layer: BinaryConv2d | BinaryLinear) -> BinaryWeight:
    scale = layer.scales.double().numpy()
    bias = layer.bias
    shift = np.zeros(scale.shape[-1]) if bias is None else bias.detach().double().numpy()
    return BinaryWeight(name, layer.codes.numpy(), scale, shift)


def _export(module: nn.Module, input_shape: tuple[int, int, int]) -> ExportedProgram:
    example = (torch.zeros(2, *input_shape),)
    try:
        with warnings.catch_warnings():
            # torch announces changes of its own internals here; nothing depends on them.
            warnings.simplefilter("ignore")
            program: ExportedProgram = torch.export.export(
                module, example, dynamic_shapes=({0: Dim.DYNAMIC},)
            )
            plain: ExportedProgram = program.run_decompositions({})
            return plain
    except Exception as error:
        # Which of its many exceptions torch raises depends on its version and on the network.
        raise InvalidArtifact(
            f"The network cannot be exported ({type(error).__name__}) for images of "
            f"{input_shape}: it does not fit them, or its computation depends on its input.",
            field="spec.architecture",
        ) from error


def _readable_names(drafts: list[Draft], layers: Mapping[str, str]) -> dict[str, str]:
    """Return the name of every node: its layer's, or its operator's with a running number."""
    names: dict[str, str] = {}
    taken = {INPUT}
    for draft in drafts:
        if draft.name in layers:
            names[draft.name] = _unique(layers[draft.name], taken)
    counts: Counter[str] = Counter()
    for draft in drafts:
        if draft.name not in layers:
            op = draft.operator.op
            counts[op] += 1
            names[draft.name] = _unique(f"{op}_{counts[op]}", taken)
    return names


def _unique(name: str, taken: set[str]) -> str:
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


def _finished(draft: Draft) -> tuple[Operator, dict[str, NDArray[Any]]]:
    """Return the operator and its tensors as the file holds them."""
    operator = draft.operator
    with np.errstate(over="ignore"):  # what becomes infinite is refused below
        arrays: dict[str, NDArray[Any]] = {
            suffix: array.astype(np.float32)
            for suffix, array in draft.arrays.items()
            if suffix != "codes"
        }
    for suffix, array in arrays.items():
        if not np.isfinite(array).all():
            operator.refuse(f"its {suffix} is not finite in float32")
    if "codes" in draft.arrays:
        codes = draft.arrays["codes"]
        bases = codes if "base_scale" in arrays else codes[None]
        arrays["bits"] = np.stack([bits.pack(basis) for basis in bases])
    if isinstance(operator, Conv2d | Linear) and _is_identity(arrays["affine"]):
        del arrays["affine"]
        operator = replace(operator, affine=False)
    return operator, arrays


def _is_identity(affine: NDArray[np.float32]) -> bool:
    return bool(np.all(affine[0] == 1) and np.all(affine[1] == 0))
