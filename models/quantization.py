"""Activations as a few evenly spaced numbers, in training and in an artifact's arithmetic.

One formula, in float32, serves the plan's ``quantize`` operator (docs/FORMAT.md, section 4.2) and
the training graph::

    q = clamp(floor((x - low) / step + 1/2), 0, 2**bits - 1)
    y = q * step + low

A convolution's border is 0, so 0 has to be one of the numbers: ``low = -zero * step`` with a whole
number ``zero`` of steps. Then ``y = (q - zero) * step``, and a product with weights -1 and +1 is a
sum of integers times ``step``, exact in any order; that is what every runtime computes (section
4.4 there). `Scale.covering` makes only such scales.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from models.layers import BinaryConv2d, BinaryLinear
from models.operators import zero_level

BITS: Final = 8

# The least step: (x - low) / step stays a number for every x that a network comes up with.
_LEAST_STEP: Final = 2.0**-100
# Of a step's significand: 8 bits of q and 16 of the step make products that float32 holds exactly.
_STEP_BITS: Final = 16

# On a CPU, numbers that stay in a core's cache from the first operation on them to the last.
_NUMBERS_AT_ONCE: Final = 1 << 17


@dataclass(frozen=True)
class Scale:
    """Which numbers activations are rounded to: ``low + step * q``, q in 0..255.

    Invariant: ``low`` is minus a whole number of ``step``s, ``zero`` of them, in 0..255; both are
    float32 numbers, and so are all multiples of ``step`` up to 255.

    Raises:
        ValueError: ``low`` is no such number, ``step`` is not positive, or they are not float32.
    """

    low: float
    step: float

    def __post_init__(self) -> None:
        if not (
            self.step > 0
            and self.step == float(np.float32(self.step))
            and self.low == float(np.float32(self.low))
            and zero_level(BITS, self.low, self.step) is not None
        ):
            raise ValueError(f"0 is none of the numbers {self.low} + {self.step} * q")

    @property
    def zero(self) -> int:
        """The q that stands for 0."""
        zero = zero_level(BITS, self.low, self.step)
        assert zero is not None
        return zero

    @classmethod
    def covering(cls, least: float, greatest: float) -> "Scale":
        """Return the scale with the smallest step that reaches from ``least`` to ``greatest``.

        0 is taken into the range. For each ``zero`` the step is ``max(-least / zero, greatest /
        (255 - zero))``; the best zero is next to where both are equal. An empty range gives steps
        of 1.
        """
        least, greatest = min(least, 0.0), max(greatest, 0.0)
        if greatest - least == 0:
            return cls(0.0, 1.0)
        most = 2**BITS - 1
        # Each end that is not 0 needs a level of its own.
        fewest, highest = int(least < 0), most - int(greatest > 0)
        balanced = math.floor(most * -least / (greatest - least))
        step, zero = min(
            (max(_share(-least, zero), _share(greatest, most - zero)), zero)
            for zero in (min(max(balanced + i, fewest), highest) for i in (0, 1))
        )
        step = _rounded_up(max(step, _LEAST_STEP))
        return cls(-zero * step, step)


def _share(reach: float, levels: int) -> float:
    """Return the step with which ``levels`` steps reach that far; 0 is there already."""
    return reach / levels if reach else 0.0


def _rounded_up(step: float) -> float:
    significand, exponent = math.frexp(step)
    return math.ldexp(math.ceil(math.ldexp(significand, _STEP_BITS)), exponent - _STEP_BITS)


def level_numbers(x: Tensor, bits: int, low: Tensor, step: Tensor) -> Tensor:
    """Return q, whole numbers in ``0..2**bits - 1`` as float32, for float32 ``x``; halves go up.

    ``low`` and ``step`` are 0-d float32. One bit is a single comparison, so that a tiny negative
    number stays negative.
    """
    if bits == 1:
        return (x >= low + step / 2).to(torch.float32)
    return ((x - low) / step).add_(0.5).floor_().clamp_(0, 2**bits - 1)


def quantize(x: Tensor, bits: int, low: float, step: float) -> Tensor:
    """Return the nearest of ``low + step * q``, q in ``0..2**bits - 1``, in float32."""
    first, width = torch.tensor(low), torch.tensor(step)
    return level_numbers(x, bits, first, width).mul_(width).add_(first)


@torch.library.custom_op("bitpress::quantize", mutates_args=())
def quantize_straight_through(x: Tensor, low: Tensor, step: Tensor, bits: int) -> Tensor:
    """``y = low + step * q``; gradient ``dL/dx = dL/dy`` where q was not clamped, else 0.

    Computed in float32, returned in the dtype of ``x``. An operator of torch's own kind, so that
    it stands as one node in an exported graph, which `models.translation` turns into ``quantize``.
    """
    result = torch.empty_like(x)
    row_numbers = max(x.numel() // max(len(x), 1), 1)
    rows = max(_NUMBERS_AT_ONCE // row_numbers, 1) if x.device.type == "cpu" else max(len(x), 1)
    for part, quantized in zip(torch.split(x, rows), torch.split(result, rows), strict=True):
        levels = level_numbers(part.to(torch.float32), bits, low, step)
        quantized.copy_(levels.mul_(step).add_(low))
    return result


@quantize_straight_through.register_fake
def _(x: Tensor, low: Tensor, step: Tensor, bits: int) -> Tensor:
    return torch.empty_like(x)


def _keep_input(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
    x, low, step, bits = inputs
    ctx.save_for_backward(x, low, step)
    ctx.bits = bits


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    x, low, step = ctx.saved_tensors
    least, greatest = low - step / 2, low + step * (2**ctx.bits - 0.5)
    between = _between_on_cpu if x.device.type == "cpu" else _between
    return between(gradient, x, least, greatest), None, None, None


def _between_on_cpu(gradient: Tensor, x: Tensor, least: Tensor, greatest: Tensor) -> Tensor:
    # In one pass over memory, which is all that this costs: the gradient between two bounds.
    bounds = least.item(), greatest.item()
    passed: Tensor = torch.ops.aten.hardtanh_backward(gradient, x, *bounds)
    return passed


def _between(gradient: Tensor, x: Tensor, least: Tensor, greatest: Tensor) -> Tensor:
    """Return the gradient where ``least < x < greatest``, else 0.

    The 0-d bounds are never asked for, so that no step waits for a GPU. They count as float32: a
    0-d tensor by itself would be rounded to the dtype of ``x``.
    """
    inside = (x > least.reshape(1)) & (x < greatest.reshape(1))
    return torch.where(inside, gradient, torch.zeros((), dtype=gradient.dtype, device=x.device))


quantize_straight_through.register_autograd(_gradient, setup_context=_keep_input)


class ActivationQuantizer(nn.Module):
    """Rounds what a layer is fed to 8 bits, with a straight-through gradient.

    Buffers ``low`` and ``step``, 0-d float32: those of a `Scale`. Input and output of any shape.
    """

    low: Tensor
    step: Tensor

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor(scale.low, dtype=torch.float32))
        self.register_buffer("step", torch.tensor(scale.step, dtype=torch.float32))

    @property
    def scale(self) -> Scale:
        """The scale that the buffers hold."""
        return Scale(self.low.item(), self.step.item())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = quantize_straight_through(x, self.low, self.step, BITS)
        return result


def quantize_inputs(network: nn.Module, scales: Mapping[str, Scale]) -> None:
    """Let the binary layers named in ``scales`` quantize what they are fed, in place.

    A quantizer that is already there is replaced.

    Raises:
        KeyError: there is no binary layer of that name.
    """
    for name, scale in scales.items():
        try:
            layer = network.get_submodule(name)
        except AttributeError:
            raise KeyError(name) from None
        if not isinstance(layer, BinaryConv2d | BinaryLinear):
            raise KeyError(name)
        layer.input_quantizer = ActivationQuantizer(scale).to(layer.weight.device)


def input_scales(network: nn.Module) -> dict[str, Scale]:
    """Return the scale of every layer of ``network`` that quantizes what it is fed, by name."""
    return {
        name: layer.input_quantizer.scale
        for name, layer in network.named_modules()
        if isinstance(layer, BinaryConv2d | BinaryLinear)
        and isinstance(layer.input_quantizer, ActivationQuantizer)
    }


def scale_tensors(scales: Mapping[str, Scale]) -> dict[str, Tensor]:
    """Return ``scales`` as float32 tensors ``(2,)``, low and step, by layer."""
    return {
        name: torch.tensor([scale.low, scale.step], dtype=torch.float32)
        for name, scale in scales.items()
    }


def scales_of(tensors: Mapping[str, Tensor]) -> dict[str, Scale]:
    """Read back what `scale_tensors` made.

    Raises:
        ValueError: a pair is no scale.
    """
    return {name: Scale(*map(float, pair.tolist())) for name, pair in tensors.items()}
