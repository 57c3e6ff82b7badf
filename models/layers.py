"""Convolution and linear layers whose weights count only by their signs.

A binary layer keeps a real-valued *latent* weight for training, computes with its signs (the
*codes*, -1 or +1, with sign(0) = +1), and multiplies each output channel by a trainable scale::

    y = conv(x, scale * sign(weight)) + bias

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


class BinaryConv2d(nn.Conv2d):
    """A convolution with weights -1 and +1 and one scale per filter.

    ``weight``: latent weights, float ``(N, C / groups, kh, kw)``. ``scale``: float ``(N,)``,
    1 at first. Input ``(B, C, H, W)``, output ``(B, N, H', W')``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scale = nn.Parameter(self.weight.new_ones(self.out_channels))
        self.quantizer: Quantizer = sign_straight_through
        self.input_quantizer: nn.Module | None = None

    @property
    def codes(self) -> Tensor:
        """Signs of the weights, int8, of the weight's shape."""
        return sign(self.weight.detach()).to(torch.int8)

    def forward(self, input: Tensor) -> Tensor:
        if self.input_quantizer is not None:
            input = self.input_quantizer(input)
        weight = self.quantizer(self.weight) * self.scale[:, None, None, None]
        product: Tensor = self._conv_forward(input, weight, self.bias)
        return product


class BinaryLinear(nn.Linear):
    """A linear layer with weights -1 and +1 and one scale per output.

    ``weight``: latent weights, float ``(N, S)``. ``scale``: float ``(N,)``, 1 at first.
    Input ``(..., S)``, output ``(..., N)``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scale = nn.Parameter(self.weight.new_ones(self.out_features))
        self.quantizer: Quantizer = sign_straight_through
        self.input_quantizer: nn.Module | None = None

    @property
    def codes(self) -> Tensor:
        """Signs of the weights, int8, of the weight's shape."""
        return sign(self.weight.detach()).to(torch.int8)

    def forward(self, input: Tensor) -> Tensor:
        if self.input_quantizer is not None:
            input = self.input_quantizer(input)
        return F.linear(input, self.quantizer(self.weight) * self.scale[:, None], self.bias)


BinaryLayer = BinaryConv2d | BinaryLinear


def binarize_layer(
    layer: nn.Conv2d | nn.Linear, codes: Tensor, scale: Tensor
) -> BinaryConv2d | BinaryLinear:
    """Return the binary form of ``layer``: its geometry and bias, the given codes and scales.

    ``codes``: -1 or +1 of any dtype, of the weight's shape; they become the latent weight.
    ``scale``: ``(N,)``. The result shares no storage with ``layer`` and is on its device.

    Raises:
        ValueError: codes or scale have another shape, or codes hold anything but -1 and +1.
    """
    if codes.shape != layer.weight.shape:
        raise ValueError(f"codes are {tuple(codes.shape)}, not {tuple(layer.weight.shape)}")
    if not bool(((codes == 1) | (codes == -1)).all()):
        raise ValueError("codes must be -1 or +1")
    if scale.shape != (layer.weight.shape[0],):
        raise ValueError(f"scale is {tuple(scale.shape)}, not ({layer.weight.shape[0]},)")
    has_bias = layer.bias is not None
    binary: BinaryConv2d | BinaryLinear
    if isinstance(layer, nn.Conv2d):
        binary = BinaryConv2d(**_conv2d_arguments(layer), bias=has_bias)
    else:
        binary = BinaryLinear(**_linear_arguments(layer), bias=has_bias)
    with torch.no_grad():
        binary.weight.copy_(codes)
        binary.scale.copy_(scale)
        if binary.bias is not None and layer.bias is not None:
            binary.bias.copy_(layer.bias)
    return binary.train(layer.training)


def plain_layer(layer: BinaryConv2d | BinaryLinear) -> nn.Conv2d | nn.Linear:
    """Return an ordinary layer whose weights are the codes of ``layer``: no scale, no bias."""
    plain: nn.Conv2d | nn.Linear
    if isinstance(layer, BinaryConv2d):
        plain = nn.Conv2d(**_conv2d_arguments(layer), bias=False)
    else:
        plain = nn.Linear(**_linear_arguments(layer), bias=False)
    with torch.no_grad():
        plain.weight.copy_(layer.codes)
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
