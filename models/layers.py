"""Convolution and linear layers whose weights count only by their signs.

A binary layer keeps a real-valued *latent* weight for training, computes with its signs (the
*codes*, -1 or +1, with sign(0) = +1), and multiplies each output channel by a trainable scale::

    y = conv(x, scale * sign(weight)) + bias

A layer may have *further bases*: more codes, which training leaves as they are, each with scales of
its own: ``scale * sign(weight) + sum of extra_scale[k] * extra_codes[k]`` are its weights then, at
one more bit per weight for each.

The scale multiplies the weights, not the result, which saves a pass over the activations and one
over their gradients. The codes are what is packed into the artifact; `models.lowering` folds scale
and bias away.

While it is trained a layer may have another ``quantizer`` than the sign with its straight-through
gradient: any differentiable function of the latent weight, of the weight's shape. What the layer is
when training is over is decided by the signs alone.

Where activations have 8 bits, the layer's ``input_quantizer`` rounds what it is fed
(`models.quantization`).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.binarize import sign, sign_straight_through

Quantizer = Callable[[Tensor], Tensor]


class _BinaryWeights(nn.Module):
    """What both kinds of layer have beside ``weight`` and ``bias``."""

    weight: Tensor
    scale: nn.Parameter
    extra_codes: Tensor
    extra_scale: nn.Parameter

    def _add_scales(self, further_bases: int) -> None:
        self.scale = nn.Parameter(self.weight.new_ones(len(self.weight)))
        self.quantizer: Quantizer = sign_straight_through
        self.input_quantizer: nn.Module | None = None
        self.bases = 1 + further_bases
        if further_bases:
            # Not (K - 1, N, ...): of five axes torch makes no channels-last tensor.
            shape = (further_bases * len(self.weight), *self.weight.shape[1:])
            self.register_buffer("extra_codes", self.weight.new_ones(shape))
            scales = self.weight.new_zeros(further_bases, len(self.weight))
            self.extra_scale = nn.Parameter(scales)

    @property
    def codes(self) -> Tensor:
        """Signs of the weights, int8, of the weight's shape; of several bases, these first."""
        first = sign(self.weight.detach()).to(torch.int8)
        if self.bases == 1:
            return first
        further = self.extra_codes.to(torch.int8).reshape(-1, *first.shape)
        return torch.cat([first[None], further])

    @property
    def scales(self) -> Tensor:
        """One scale per filter ``(N,)``, or per basis and filter ``(K, N)``, without gradient."""
        first = self.scale.detach()
        return first if self.bases == 1 else torch.cat([first[None], self.extra_scale.detach()])

    def _fed(self, input: Tensor) -> Tensor:
        return input if self.input_quantizer is None else self.input_quantizer(input)

    def _effective_weight(self) -> Tensor:
        axes = (1,) * (self.weight.ndim - 1)
        weight = self.quantizer(self.weight) * self.scale.view(-1, *axes)
        for basis in range(self.bases - 1):
            codes = self.extra_codes[basis * len(weight) : (basis + 1) * len(weight)]
            weight = weight + codes * self.extra_scale[basis].view(-1, *axes)
        return weight


class BinaryConv2d(_BinaryWeights, nn.Conv2d):
    """A convolution with weights -1 and +1 and one scale per filter.

    ``weight``: latent weights, float ``(N, C / groups, kh, kw)``. ``scale``: float ``(N,)``,
    1 at first. With K > 1 bases, ``extra_codes``: -1 or +1, ``((K - 1) N, C / groups, kh, kw)``, a
    buffer, and ``extra_scale``: float ``(K - 1, N)``, 0 at first.
    Input ``(B, C, H, W)``, output ``(B, N, H', W')``.
    """

    def __init__(self, *args: Any, further_bases: int = 0, **kwargs: Any) -> None:
        nn.Conv2d.__init__(self, *args, **kwargs)
        self._add_scales(further_bases)

    def forward(self, input: Tensor) -> Tensor:
        product: Tensor = self._conv_forward(self._fed(input), self._effective_weight(), self.bias)
        return product


class BinaryLinear(_BinaryWeights, nn.Linear):
    """A linear layer with weights -1 and +1 and one scale per output.

    ``weight``: latent weights, float ``(N, S)``. ``scale``: float ``(N,)``, 1 at first. With K > 1
    bases, ``extra_codes``: -1 or +1, ``((K - 1) N, S)``, a buffer, and ``extra_scale``: float
    ``(K - 1, N)``, 0 at first. Input ``(..., S)``, output ``(..., N)``.
    """

    def __init__(self, *args: Any, further_bases: int = 0, **kwargs: Any) -> None:
        nn.Linear.__init__(self, *args, **kwargs)
        self._add_scales(further_bases)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(self._fed(input), self._effective_weight(), self.bias)


BinaryLayer = BinaryConv2d | BinaryLinear


def binarize_layer(
    layer: nn.Conv2d | nn.Linear, codes: Tensor, scale: Tensor, offset: Tensor | None = None
) -> BinaryConv2d | BinaryLinear:
    """Return the binary form of ``layer``: its geometry and bias, the given codes and scales.

    ``codes``: -1 or +1 of any dtype, of the weight's shape, or ``(K, *shape)`` for K bases; the
    first become the latent weight. ``scale``: ``(N,)`` or ``(K, N)``. ``offset``: ``(N,)``, added
    to the bias, which is made where there is none. The result shares no storage with ``layer`` and
    is on its device.

    Raises:
        ValueError: codes, scale or offset have another shape, or codes hold anything but -1 and +1.
    """
    shape = layer.weight.shape
    if codes.ndim == len(shape):
        codes, scale = codes[None], scale[None]
    if codes.shape[1:] != shape or len(codes) < 1:
        raise ValueError(f"codes are {tuple(codes.shape)}, not {(len(codes), *shape)}")
    if not bool(((codes == 1) | (codes == -1)).all()):
        raise ValueError("codes must be -1 or +1")
    if scale.shape != codes.shape[:2]:
        raise ValueError(f"scale is {tuple(scale.shape)}, not {tuple(codes.shape[:2])}")
    if offset is not None and offset.shape != shape[:1]:
        raise ValueError(f"offset is {tuple(offset.shape)}, not ({shape[0]},)")
    has_bias = layer.bias is not None or offset is not None
    further = len(codes) - 1
    binary: BinaryConv2d | BinaryLinear
    if isinstance(layer, nn.Conv2d):
        binary = BinaryConv2d(**_conv2d_arguments(layer), bias=has_bias, further_bases=further)
    else:
        binary = BinaryLinear(**_linear_arguments(layer), bias=has_bias, further_bases=further)
    with torch.no_grad():
        binary.weight.copy_(codes[0])
        binary.scale.copy_(scale[0])
        if further:
            binary.extra_codes.copy_(codes[1:].flatten(0, 1))
            binary.extra_scale.copy_(scale[1:])
        if binary.bias is not None:
            binary.bias.zero_()
            for shift in (layer.bias, offset):
                if shift is not None:
                    binary.bias.add_(shift.to(binary.bias.device))
    return binary.train(layer.training)


def plain_layer(layer: BinaryConv2d | BinaryLinear) -> nn.Conv2d | nn.Linear:
    """Return an ordinary layer whose weights are the first codes of ``layer``; it has no bias."""
    plain: nn.Conv2d | nn.Linear
    if isinstance(layer, BinaryConv2d):
        plain = nn.Conv2d(**_conv2d_arguments(layer), bias=False)
    else:
        plain = nn.Linear(**_linear_arguments(layer), bias=False)
    with torch.no_grad():
        plain.weight.copy_(sign(layer.weight))
    return plain.train(layer.training)


def _conv2d_arguments(layer: nn.Conv2d) -> dict[str, Any]:
    return {
        "in_channels": layer.in_channels,
        "out_channels": layer.out_channels,
        "kernel_size": layer.kernel_size,
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
        "padding_mode": layer.padding_mode,
        "device": layer.weight.device,
        "dtype": layer.weight.dtype,
    }


def _linear_arguments(layer: nn.Linear) -> dict[str, Any]:
    return {
        "in_features": layer.in_features,
        "out_features": layer.out_features,
        "device": layer.weight.device,
        "dtype": layer.weight.dtype,
    }


def replace_layer(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Put ``layer`` in the place of the submodule called ``name`` (``features.0``), in place.

    Raises:
        KeyError: there is no such submodule.
    """
    parent_name, _, child_name = name.rpartition(".")
    try:
        parent = module.get_submodule(parent_name)
    except AttributeError:
        raise KeyError(name) from None
    if parent._modules.get(child_name) is None:
        raise KeyError(name)
    parent._modules[child_name] = layer


def binarizable_layers(module: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return every convolution and linear layer by name, in the order of ``named_modules``.

    Layers that are binary already are among them: the names of a network do not depend on how
    far its calibration has come.
    """
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }


def float32_bytes(module: nn.Module) -> int:
    """Return the bytes of all floating-point parameters and buffers of ``module`` as float32.

    This is what the compression ratio is measured against; batch norm's counters of batches,
    which no prediction needs, do not count.
    """
    tensors = [*module.parameters(), *module.buffers()]
    return 4 * sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())
