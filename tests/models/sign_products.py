"""Products of signs drawn at random, and what they come to, as plainly as it can be said."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from models import bits
from models.attributes import Activation
from models.kernels.product_shape import Epilogue, Levels, ProductShape, ProductTensors

_ACTIVATIONS = (None, Activation("relu"), Activation("hardtanh", -2.0, 7.5), Activation("prelu"))
_NUMPY = {"f16": np.float16, "f32": np.float32, "i8": np.int8, "b1": np.int32}


@dataclass(frozen=True)
class SignProduct:
    """A product, the codes -1 and +1 that it is of, and the numbers that finish it.

    ``x``: int8 ``(N, H, W, C)``. ``weights``: int8 ``(bases, F, C / groups, kh, kw)``.
    """

    shape: ProductShape
    epilogue: Epilogue
    x: Any
    weights: Any
    numbers: dict[str, Any]

    @property
    def x_words(self):
        return bits.pack_words(self.x, 32)

    @property
    def weight_words(self):
        shape = self.weights.shape[1:]
        return np.stack([bits.repack(bits.pack(basis), shape, 32) for basis in self.weights])

    @property
    def out_shape(self):
        return self.shape.out_shape(len(self.x), self.epilogue.kept)

    @property
    def out_dtype(self):
        return _NUMPY[self.epilogue.kept]

    def tensors(self, tap_sums, device):
        """The numbers as the kernels take them."""
        found = {name: torch.from_numpy(array).to(device) for name, array in self.numbers.items()}
        words = torch.from_numpy(self.weight_words).to(device)
        return words, ProductTensors(**found, tap_sums=tap_sums(words, self.shape))


def random_product(seed, *, kept=None, whole_words=False, most_channels=140, bases=None):
    """Draw a product. ``whole_words``: one that tensor cores can compute."""
    rng = np.random.default_rng(seed)
    shape = random_shape(rng, whole_words, most_channels)
    shape = replace(shape, bases=bases or int(rng.choice([1, 1, 2])))
    epilogue = random_epilogue(rng, kept or str(rng.choice(["f16", "f32", "i8", "b1"])))
    images = int(rng.integers(1, 4))
    x = 2 * rng.integers(0, 2, (images, *shape.in_hw, shape.in_channels), dtype=np.int8) - 1
    weight_shape = (shape.bases, shape.filters, shape.group_channels, *shape.kernel)
    weights = 2 * rng.integers(0, 2, weight_shape, dtype=np.int8) - 1
    numbers = finishing_numbers(rng, shape, epilogue, images)
    return SignProduct(shape, epilogue, x, weights, numbers)


def random_shape(rng, whole_words, most_channels):
    """Draw a geometry, with borders on all sides wider than a kernel at times."""
    groups = int(rng.choice([1, 1, 2, 3]))
    if whole_words and groups > 1:
        channels, filters = (32 * int(rng.integers(1, 3)) for _ in range(2))
    else:
        most = max(most_channels // groups, 1)
        channels, filters = (int(rng.integers(1, most + 1)) for _ in range(2))
    while True:
        kernel, stride, dilation = (
            tuple(int(size) for size in rng.integers(1, most + 1, 2)) for most in (4, 3, 2)
        )
        padding = tuple(int(size) for size in rng.integers(0, 4, 2))
        size = tuple(int(size) for size in rng.integers(1, 8, 2))
        try:
            return ProductShape(
                channels * groups, filters * groups, kernel, stride, padding, dilation, groups,
                size, pad_value=int(rng.integers(0, 2)),
            )  # fmt: skip
        except ValueError:  # no window fits
            continue


def random_epilogue(rng, kept):
    zero = int(rng.integers(0, 3))
    width = int(rng.choice([8, 4, 2, 1]))
    levels = Levels(width, -min(zero, 2**width - 1) * 1.5, 1.5, min(zero, 2**width - 1))
    return Epilogue(
        "b1",
        kept,
        kept_levels=levels if kept == "i8" else None,
        also_levels=levels if kept in ("f16", "f32") and rng.integers(0, 2) else None,
        base_scale=bool(rng.integers(0, 2)),
        affine=bool(rng.integers(0, 2)),
        residual=(None, "f16", "f32")[rng.integers(0, 3)],
        activation=_ACTIVATIONS[rng.integers(0, len(_ACTIVATIONS))],
        threshold=kept == "b1" and bool(rng.integers(0, 2)),
    )


def finishing_numbers(rng, shape, epilogue, images):
    def drawn(*sizes):
        return rng.normal(0, 2, sizes).astype(np.float32)

    numbers = {}
    if epilogue.base_scale:
        numbers["base_scale"] = drawn(shape.bases, shape.filters)
    if epilogue.affine:
        numbers["affine"] = drawn(2, shape.filters)
    if epilogue.activation is not None and epilogue.activation.kind == "prelu":
        numbers["slope"] = drawn(shape.filters)
    if epilogue.threshold:
        threshold = drawn(2, shape.filters) * 4
        threshold[0] = rng.integers(-1, 2, shape.filters)
        numbers["threshold"] = threshold
    if epilogue.residual is not None:
        residual = drawn(images, *shape.out_hw, shape.filters) * 4
        numbers["residual"] = residual.astype(_NUMPY[epilogue.residual])
    return numbers


def sums_of(product):
    """Signs times weights, int64 ``(bases, N, rows, columns, F)``, tap by tap."""
    shape = product.shape
    (top, left), (rows, columns) = shape.padding, shape.out_hw
    x = np.pad(
        product.x.astype(np.int64),
        ((0, 0), (top, top), (left, left), (0, 0)),
        constant_values=shape.pad_value,
    )
    total = np.zeros((shape.bases, len(x), rows, columns, shape.filters), np.int64)
    for ky in range(shape.kernel[0]):
        for kx in range(shape.kernel[1]):
            y0, x0 = ky * shape.dilation[0], kx * shape.dilation[1]
            seen = x[
                :,
                y0 : y0 + (rows - 1) * shape.stride[0] + 1 : shape.stride[0],
                x0 : x0 + (columns - 1) * shape.stride[1] + 1 : shape.stride[1],
            ].reshape(len(x), rows, columns, shape.groups, shape.group_channels)
            weights = product.weights[..., ky, kx].reshape(
                shape.bases, shape.groups, shape.group_filters, shape.group_channels
            )
            part = np.einsum("nijgc,bgfc->bnijgf", seen, weights.astype(np.int64))
            total += part.reshape(total.shape)
    return total


def expected(product):
    """What is kept of the product."""
    return kept(finished(product), product)


def expected_levels(product):
    """The levels that are kept besides."""
    return (level_numbers(finished(product), product.epilogue.also_levels) - 128).astype(np.int8)


def finished(product):
    """The product's numbers, every operation rounded to binary32 on its own."""
    numbers, epilogue = product.numbers, product.epilogue
    terms = sums_of(product).astype(np.float32)
    if epilogue.base_scale:
        terms *= numbers["base_scale"][:, None, None, None]
    y = terms[0]
    for term in terms[1:]:
        y = y + term
    if epilogue.affine:
        y = numbers["affine"][0] * y + numbers["affine"][1]
    if epilogue.residual is not None:
        y = y + numbers["residual"].astype(np.float32)
    return activated(y, epilogue.activation, numbers)


def activated(y, activation, numbers):
    if activation is None:
        return y
    if activation.kind == "relu":
        return np.maximum(y, np.float32(0))
    if activation.kind == "hardtanh":
        return np.clip(y, np.float32(activation.low), np.float32(activation.high))
    return np.where(y >= 0, y, numbers["slope"] * y)


def kept(y, product):
    epilogue = product.epilogue
    assert y.dtype == np.float32
    if epilogue.kept == "b1":
        return bits.pack_words(signs(y, product.numbers.get("threshold")), 32)
    if epilogue.kept == "i8":
        return (level_numbers(y, epilogue.kept_levels) - 128).astype(np.int8)
    return y.astype(product.out_dtype)


def signs(y, threshold):
    positive = y >= 0 if threshold is None else threshold[0] * y >= threshold[1]
    return np.where(positive, 1, -1)


def level_numbers(y, levels):
    low, step = np.float32(levels.low), np.float32(levels.step)
    if levels.bits == 1:
        return (y >= low + step / 2).astype(np.float32)
    q = np.floor((y - low) / step + np.float32(0.5))
    return np.clip(q, 0, 2**levels.bits - 1)
