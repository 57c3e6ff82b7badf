"""The reference runtime: what every operator of a plan means, as plain torch.

Every other runtime is right where it agrees with this one, and where activations are quantized it
has to agree bit for bit (`models.runtime.levels`). This one favours plainness over speed, but
its memory is bounded: weights stay packed and are unpacked a few filters at a time, a batch is
worked through in chunks that fit a budget, and a value is dropped after its last reader.
"""

from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.artifact import Artifact
from models.attributes import Activation
from models.binarize import sign
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
    Quantize,
    SignPack,
    Subsample,
)
from models.plan import INPUT
from models.quantization import quantize
from models.runtime.levels import exact_dtype, fed_levels, levels, real_numbers
from models.runtime.unpacking import Part, parts, sign_table, unpack_filters

WEIGHTS_AT_ONCE: Final = 4 << 20  # 16 MiB of float32
ACTIVATION_BYTES: Final = 64 << 20  # of all values alive at once


class ReferenceRuntime:
    """Executes an artifact's plan from its packed bits. Immutable, so threads may share it.

    ``weights_at_once``: most weights unpacked at a time, but at least one filter's.
    ``activation_bytes``: most bytes of activations at a time, but at least one image's.
    """

    name = "reference"
    kernels = "torch"
    device_bytes = 0

    def __init__(
        self,
        artifact: Artifact,
        *,
        weights_at_once: int = WEIGHTS_AT_ONCE,
        activation_bytes: int = ACTIVATION_BYTES,
    ) -> None:
        self._plan = artifact.plan
        self._tensors = {
            name: torch.from_numpy(np.array(tensor)) for name, tensor in artifact.tensors.items()
        }
        self._fed_levels = fed_levels(self._plan)
        self._levelled = {node.name: node for node in self._fed_levels.values()}
        self._signs = sign_table()
        self._weights_at_once = weights_at_once
        self._images_at_once = max(1, activation_bytes // (4 * self._plan.peak_elements))

    @property
    def resident_bytes(self) -> int:
        """Bytes of packed weights, float tensors and the table that unpacks bits."""
        return sum(tensor.nbytes for tensor in (*self._tensors.values(), self._signs))

    @property
    def activation_bytes(self) -> int:
        """Bytes of the values alive at once, for one image; torch's own memory not counted."""
        return 4 * self._plan.peak_elements

    def run(self, x: Tensor) -> Tensor:
        """Return the plan's output, float32 ``(N, *output_shape)``, for ``(N, C, H, W)``.

        Raises:
            ValueError: ``x`` is not float32 of the plan's input shape.
        """
        if x.dtype != torch.float32 or tuple(x.shape[1:]) != self._plan.input_shape:
            raise ValueError(f"input must be float32 (N, *{self._plan.input_shape})")
        if len(x) == 0:
            return x.new_empty((0, *self._plan.output_shape))
        with torch.no_grad():
            starts = range(0, len(x), self._images_at_once)
            return torch.cat([self._run_chunk(x[i : i + self._images_at_once]) for i in starts])

    def _run_chunk(self, x: Tensor) -> Tensor:
        values = {INPUT: x}
        for node in self._plan.nodes:
            result = self._execute(node, self._read(node, values))
            for source in {*node.sources}:
                if self._plan.last_reader[source] == node.name:
                    del values[source]
            values[node.name] = result
        return values[self._plan.output]

    def _read(self, node: Operator, values: dict[str, Tensor]) -> list[Tensor]:
        """Return what ``node`` reads: levels where it computes with them, else real numbers."""
        read = []
        for position, source in enumerate(node.sources):
            x, quantizer = values[source], self._levelled.get(source)
            if quantizer is not None and (position > 0 or node.name not in self._fed_levels):
                x = real_numbers(x, quantizer)
            read.append(x)
        return read

    def _execute(self, node: Operator, sources: list[Tensor]) -> Tensor:
        """Compute one node. Values are never changed once made: several nodes may read them."""
        x = sources[0]
        match node:
            case Conv2d() | Linear():
                return self._product(node, sources)
            case Quantize():
                if node.name in self._levelled:
                    return levels(x, node)
                return quantize(x, node.bits, node.low, node.step)
            case SignPack():
                if not node.per_channel:
                    return sign(x)
                sense, threshold = self._tensors[f"{node.name}.threshold"]
                return sign_at(per_channel(sense, x) * x, per_channel(threshold, x))
            case MaxPool2d():
                return F.max_pool2d(x, node.kernel, node.stride, node.padding)
            case AvgPool2d():
                return F.avg_pool2d(x, node.kernel, node.stride, node.padding)
            case Affine():
                gain, shift = self._tensors[f"{node.name}.affine"]
                return x * per_channel(gain, x) + per_channel(shift, x)
            case Activate():
                return self._activate(node, node.activation, x.clone())
            case Add():
                return self._activate(node, node.activation, x + sources[1])
            case Concat():
                return torch.cat(sources, dim=1)
            case Subsample():
                return x[:, :, :: node.stride[0], :: node.stride[1]].contiguous()
            case PadChannels():
                return F.pad(x, (0, 0, 0, 0, node.before, node.after))
            case Flatten():
                return x.flatten(1)
        raise NotImplementedError(node.op)

    def _product(self, node: Conv2d | Linear, sources: list[Tensor]) -> Tensor:
        """``activation(affine(weights . x) + residual)``."""
        x = sources[0]
        if isinstance(node, Conv2d) and node.pad_value != 0:
            rows, columns = node.padding
            x = F.pad(x, (columns, columns, rows, rows), value=float(node.pad_value))
        y = self._weigh(node, x)
        quantizer = self._fed_levels.get(node.name)
        step = None if quantizer is None else torch.tensor(quantizer.step)
        if node.affine:
            gain, shift = self._tensors[f"{node.name}.affine"]
            if step is not None:
                gain = gain * step
            y.mul_(per_channel(gain, y)).add_(per_channel(shift, y))
        elif step is not None:
            y.mul_(step)
        if node.residual is not None:
            y.add_(sources[1])
        return self._activate(node, node.activation, y)

    def _weigh(self, node: Conv2d | Linear, x: Tensor) -> Tensor:
        """Return weights times ``x``, in memory of its own."""
        if node.weight == "float":
            return _multiply(node, x, self._tensors[f"{node.name}.weight"])
        shape = node.weight_shape(self._plan.source_shapes(node))
        quantizer = self._fed_levels.get(node.name)
        if quantizer is not None:
            x = x.to(exact_dtype(quantizer, shape))
        groups = node.groups if isinstance(node, Conv2d) else 1
        done = [
            self._weigh_part(node, x, part, shape)
            for part in parts(shape, groups, self._weights_at_once)
        ]
        return done[0] if len(done) == 1 else torch.cat(done, dim=1)

    def _weigh_part(
        self, node: Conv2d | Linear, x: Tensor, part: Part, shape: tuple[int, ...]
    ) -> Tensor:
        """Return the product for some of the filters, summed over the bases."""
        bits = self._tensors[f"{node.name}.bits"][:, part.filters]
        part_shape = (bits.shape[1], *shape[1:])
        total: Tensor | None = None
        for basis, rows in enumerate(bits):
            weight = unpack_filters(rows, part_shape, self._signs).to(x.dtype)
            y = _multiply(node, x[:, part.inputs], weight, part.groups).float()
            if node.base_scale:
                scale = self._tensors[f"{node.name}.base_scale"][basis, part.filters]
                y.mul_(per_channel(scale, y))
            total = y if total is None else total.add_(y)
        assert total is not None  # a plan has at least one basis
        return total

    def _activate(self, node: Operator, activation: Activation | None, x: Tensor) -> Tensor:
        """Return the activation of ``x``, whose memory it may take: nobody else knows it yet."""
        if activation is None:
            return x
        match activation.kind:
            case "relu":
                return x.clamp_(min=0)
            case "hardtanh":
                return x.clamp_(activation.low, activation.high)
            case "prelu":
                slope = per_channel(self._tensors[f"{node.name}.slope"], x)
                return torch.where(x >= 0, x, slope * x)


def _multiply(
    node: Conv2d | Linear, x: Tensor, weight: Tensor, groups: int | None = None
) -> Tensor:
    if isinstance(node, Linear):
        return F.linear(x, weight)
    return F.conv2d(
        x,
        weight,
        stride=node.stride,
        # A border of other than zeros is already there.
        padding=node.padding if node.pad_value == 0 else 0,
        dilation=node.dilation,
        groups=node.groups if groups is None else groups,
    )


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Return ``values (C,)`` in the shape that multiplies ``x (N, C)`` or ``(N, C, H, W)``."""
    return values.view(-1, *[1] * (x.ndim - 2))


def sign_at(x: Tensor, threshold: Tensor) -> Tensor:
    """Return +1 where ``x >= threshold`` and -1 elsewhere, float32."""
    return torch.where(x >= threshold, 1.0, -1.0)
