"""Which 8-bit numbers every binary layer is fed, from what it is fed for the calibration images.

One pass over the images fills a histogram per layer, of bounded size; the scale is then chosen from
the histogram alone:

* ``minmax`` covers all that was seen,
* ``mse`` takes, among narrower and narrower ranges, the one with the least squared error: numbers
  outside of it are clamped, those inside rounded more finely.

The network is measured without any quantizer, so that layers fed the same value get the same scale
and share one quantizer in the plan.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.layers import BinaryConv2d, BinaryLayer, BinaryLinear
from models.quantization import BITS, Scale
from worker.calibration_images import CalibrationImages
from worker.exact_products import exact_products
from worker.finite import not_finite
from worker.progress import ImageRate, Progress

Choice = Literal["mse", "minmax"]

# Bins on either side of 0: at least 64 for each of the 256 numbers of a range that is fully used.
_BINS: Final = 1 << 15
_LEAST_EXPONENT: Final = -100
# Ranges that are tried, as shares of the greatest number seen, down to a 64th.
_SHARES: Final = 2.0 ** (-np.arange(97) / 16)
_MOST_ROUNDS: Final = 8


class Histogram:
    """Counts of numbers other than 0, on any device, in bins whose width is a power of two.

    The width doubles as often as it must to take in the next number: two bins become one, and since
    the bins of all widths nest, the counts do not depend on the order in which numbers come.
    ``least`` and ``greatest`` are the exact ends of what was seen, 0 included.
    """

    def __init__(self) -> None:
        self.least = 0.0
        self.greatest = 0.0
        self._exponent: int | None = None  # the width is 2**exponent
        self._counts = torch.zeros(2 * _BINS, dtype=torch.int64)

    def add(self, numbers: Tensor) -> None:
        """Count float32 ``numbers`` of any shape.

        Raises:
            ValueError: some are infinite or not numbers.
        """
        if numbers.numel() == 0:
            return
        least, greatest = (end.item() for end in numbers.aminmax())
        if not np.isfinite([least, greatest]).all():
            raise ValueError("activations are not finite")
        self.least, self.greatest = min(self.least, least), max(self.greatest, greatest)
        if self.least == self.greatest == 0:
            return
        self._widen()
        assert self._exponent is not None
        bins = (numbers.flatten() * 2.0**-self._exponent).floor_()
        counts = torch.bincount(bins.to(torch.int64).add_(_BINS), minlength=2 * _BINS)
        counts[_BINS] -= (numbers == 0).sum()
        self._counts += counts.cpu()

    def _widen(self) -> None:
        """Let the bins reach as far as ``least`` and ``greatest``."""
        reach = max(-self.least, self.greatest)
        # The least e with reach < _BINS * 2**e, as long as 2**-e is a float32 number.
        needed = max(int(np.frexp(reach)[1]) - (_BINS.bit_length() - 1), _LEAST_EXPONENT)
        if self._exponent is None:
            self._exponent = needed
        while self._exponent < needed:
            halved = self._counts.view(-1, 2).sum(dim=1)
            self._counts.zero_()
            self._counts[_BINS // 2 : _BINS // 2 + _BINS] = halved
            self._exponent += 1

    def content(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the middles of the bins that are not empty, and their counts."""
        if self._exponent is None:
            return np.empty(0), np.empty(0)
        filled = np.flatnonzero(self._counts.numpy())
        middles = np.ldexp(filled - _BINS + 0.5, self._exponent)
        return middles, self._counts.numpy()[filled].astype(np.float64)


def minmax_scale(seen: Histogram) -> Scale:
    """Return the scale that covers all numbers seen, and 0."""
    return Scale.covering(seen.least, seen.greatest)


def mse_scale(seen: Histogram) -> Scale:
    """Return the scale of least squared error among ranges that end at shares of those seen.

    Both ends are narrowed together first, and then one after the other until neither moves.
    """
    middles, counts = seen.content()
    errors: dict[tuple[float, float], float] = {}

    def error(share: tuple[float, float]) -> float:
        if share not in errors:
            scale = Scale.covering(seen.least * share[0], seen.greatest * share[1])
            errors[share] = squared_error(middles, counts, scale)
        return errors[share]

    best = min(((share, share) for share in _SHARES.tolist()), key=error)
    if seen.least < 0 < seen.greatest:
        for _ in range(_MOST_ROUNDS):
            before = best
            best = min(((share, before[1]) for share in _SHARES.tolist()), key=error)
            best = min(((best[0], share) for share in _SHARES.tolist()), key=error)
            if best == before:
                break
    return Scale.covering(seen.least * best[0], seen.greatest * best[1])


def squared_error(numbers: NDArray[np.float64], counts: NDArray[np.float64], scale: Scale) -> float:
    """Return the sum of ``counts * (quantized - number)**2``."""
    levels = np.floor((numbers - scale.low) / scale.step + 0.5).clip(0, 2**BITS - 1)
    return float(counts @ (levels * scale.step + scale.low - numbers) ** 2)


CHOICES: Final[Mapping[Choice, Callable[[Histogram], Scale]]] = MappingProxyType(
    {"mse": mse_scale, "minmax": minmax_scale}
)


def activation_scales(
    network: nn.Module, images: CalibrationImages, choice: Choice, progress: Progress
) -> dict[str, Scale]:
    """Return a scale for what each binary layer of ``network`` is fed, by name.

    ``network`` is in evaluation mode and stays as it is; quantizers that it has already take no
    part. ``progress`` takes the fraction of the work that is done, and a short message.

    Raises:
        InvalidCheckpoint: a layer is fed numbers that are not finite.
    """
    layers = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, BinaryConv2d | BinaryLinear)
    }
    seen = _histograms(network, layers, images, progress)
    return {name: CHOICES[choice](histogram) for name, histogram in seen.items()}


def _histograms(
    network: nn.Module,
    layers: dict[str, BinaryLayer],
    images: CalibrationImages,
    progress: Progress,
) -> dict[str, Histogram]:
    """Return the histogram of what each layer is fed; layers that are never fed have none."""
    seen: dict[str, Histogram] = {}
    quantizers = {name: layer.input_quantizer for name, layer in layers.items()}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            try:
                seen.setdefault(name, Histogram()).add(arguments[0].float())
            except ValueError as error:
                raise not_finite(f"Layer {name}: its activations") from error

        return hook

    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]
    try:
        for layer in layers.values():
            layer.input_quantizer = None
        done, rate = 0, ImageRate(len(images))
        with torch.inference_mode(), exact_products():
            for batch in images.batches():
                network(batch)
                done += len(batch)
                progress(done / len(images), "measuring activations", rate.details(done))
    finally:
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            layer.input_quantizer = quantizers[name]
    return seen
