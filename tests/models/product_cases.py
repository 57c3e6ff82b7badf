"""Random products of packed bits, and what they have to give, in plain torch.

A product that reads levels is held to the bit; one that reads real numbers to what float32 sums may
lose, against sums in float64.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from models import bits
from models.kernels.product_shape import Epilogue, ProductShape, ProductTensors
from models.kernels.triton.borders import border_sums
from models.kernels.triton.operators import KINDS, launch_product
from models.kernels.triton.word_order import interleaved
from models.quantization import level_numbers

POISON = {"f16": float("nan"), "f32": float("nan"), "i8": 77, "b1": 0x5A5A5A5A}
GUARD = 64  # numbers behind the result, which nobody may write to


@dataclass
class Case:
    """A product's tensors, on the CPU, and the float32 numbers it ought to make."""

    shape: ProductShape
    epilogue: Epilogue
    x: torch.Tensor
    words: torch.Tensor
    tensors: ProductTensors
    expected: torch.Tensor
    tolerance: torch.Tensor  # of each number
    also: torch.Tensor | None = None  # the levels that were kept besides, after a run


def random_case(shape: ProductShape, epilogue: Epilogue, images: int, seed: int) -> Case:
    random = np.random.default_rng(seed)
    codes = random.choice(
        [-1, 1], size=(shape.bases, shape.filters, shape.group_channels, *shape.kernel)
    ).astype(np.int8)
    words = torch.from_numpy(
        np.stack([bits.repack(bits.pack(c), c.shape, 32) for c in codes]).reshape(shape.words_shape)
    )
    x, real = _input(shape, epilogue, images, random)
    tensors = _tensors(shape, epilogue, images, words, random)
    expected, greatest = _expected(shape, epilogue, real, torch.from_numpy(codes), tensors)
    exact = epilogue.read == "i8"
    return Case(
        shape,
        epilogue,
        x,
        interleaved(words, epilogue.read),
        tensors,
        expected.float(),
        torch.zeros_like(greatest) if exact else 4e-6 * greatest,
    )


def run_case(case, config, device="cpu"):
    """Return what the kernels make of ``case``, having been given poisoned memory."""
    images = len(case.x)
    kind = case.epilogue.kept
    sizes = case.shape.out_shape(images, kind)
    length = int(np.prod(sizes))
    memory = torch.full((length + GUARD,), POISON[kind], dtype=KINDS[kind], device=device)
    given = {
        name: None if tensor is None else tensor.to(device)
        for name, tensor in vars(case.tensors).items()
    }
    out = memory[:length].view(sizes)
    if case.epilogue.also_levels is not None:
        given["also"] = torch.full(sizes, POISON["i8"], dtype=torch.int8, device=device)
    launch_product(
        case.x.to(device),
        case.words.to(device),
        ProductTensors(**given),
        case.shape,
        case.epilogue,
        out,
        config,
    )
    guard = memory[length:].cpu()
    assert torch.equal(
        guard.nan_to_num(3), torch.full((GUARD,), POISON[kind], dtype=guard.dtype).nan_to_num(3)
    )
    if given["also"] is not None:
        case.also = given["also"].cpu()
    return out.cpu()


def check_case(case, out):
    """Compare with what is expected, each kind of result in its way."""
    expected, tolerance, kind = case.expected, case.tolerance, case.epilogue.kept
    if case.epilogue.also_levels is not None:
        _check_levels(case, case.also, case.epilogue.also_levels)
    if kind == "f32":
        assert bool(((out - expected).abs() <= tolerance).all())
    elif kind == "f16":
        rounding = 2.0**-11 * expected.abs() + 2.0**-24
        assert bool(((out.float() - expected).abs() <= tolerance + rounding).all())
    elif kind == "i8":
        _check_levels(case, out, case.epilogue.kept_levels)
    else:
        found = _unpacked(out, case.shape.filters)
        one_way, other = (_signs(case, expected + way * tolerance) for way in (-1, 1))
        assert bool(((found == one_way) | (found == other)).all())
        assert torch.equal(torch.from_numpy(bits.pack_words(found.numpy(), 32)), out)


def _check_levels(case, found, levels):
    low, high = (_levels(levels, case.expected + way * case.tolerance) for way in (-1, 1))
    assert bool(((low <= found) & (found <= high)).all())


def _input(shape, epilogue, images, random):
    sizes = (images, *shape.in_hw, shape.in_channels)
    levels = epilogue.read_levels
    if levels is None:
        x = torch.from_numpy(random.standard_normal(sizes)).to(KINDS[epilogue.read])
        return x, x.double()
    q = torch.from_numpy(random.integers(0, 2**levels.bits, size=sizes))
    return (q - 128).to(torch.int8), (q - levels.zero).double()


def _tensors(shape, epilogue, images, words, random):
    def normal(*sizes):
        return torch.from_numpy(random.standard_normal(sizes).astype(np.float32))

    levels = epilogue.read_levels
    border = border_sums(words, shape, None if levels is None else levels.zero)
    prelu = epilogue.activation is not None and epilogue.activation.kind == "prelu"
    filters = shape.filters
    senses = torch.from_numpy(random.choice([-1.0, 0.0, 1.0], size=filters)).float()
    return ProductTensors(
        base_scale=normal(shape.bases, filters) if epilogue.base_scale else None,
        affine=normal(2, filters) if epilogue.affine else None,
        slope=normal(filters) if prelu else None,
        threshold=torch.stack([senses, normal(filters)]) if epilogue.threshold else None,
        residual=normal(*shape.out_shape(images, "f32")).to(KINDS[epilogue.residual])
        if epilogue.residual
        else None,
        offsets=None if border is None else border.offsets,
        places=None if border is None else border.places,
    )


def _expected(shape, epilogue, real, codes, tensors):
    """Return the numbers, and the greatest that may have been rounded on the way to each."""
    rows, columns = shape.padding
    padded = F.pad(
        real.permute(0, 3, 1, 2), (columns, columns, rows, rows), value=float(shape.pad_value)
    )
    # Sums of levels are whole numbers, exact in float64; what follows is float32 by definition.
    wide = torch.float32 if epilogue.read == "i8" else torch.float64
    product = greatest = torch.zeros(())
    for base in range(shape.bases):
        sums, reach = (
            F.conv2d(
                part, weight, stride=shape.stride, dilation=shape.dilation, groups=shape.groups
            ).permute(0, 2, 3, 1)
            for part, weight in (
                (padded, codes[base].double()),
                (padded.abs(), codes[base].double().abs()),
            )
        )
        scale = tensors.base_scale[base].to(wide) if epilogue.base_scale else torch.ones(())
        term = scale * sums.to(wide) if epilogue.base_scale else sums.to(wide)
        product = term if base == 0 else product + term
        greatest = greatest + scale.abs() * reach
    if epilogue.affine:
        gain, shift = tensors.affine.to(wide)
        product = gain * product + shift
        greatest = gain.abs() * greatest + shift.abs()
    elif epilogue.read_levels is not None:
        product = product * torch.tensor(epilogue.read_levels.step)
    if tensors.residual is not None:
        product = product + tensors.residual.to(wide)
        greatest = greatest + tensors.residual.abs()
    greatest = greatest.expand_as(product)
    if epilogue.activation is not None:
        product, greatest = _activated(epilogue.activation, product, greatest, tensors.slope)
    return product, greatest.float()


def _activated(activation, y, greatest, slope):
    if activation.kind == "relu":
        return y.clamp(min=0), greatest
    if activation.kind == "hardtanh":
        return y.clamp(activation.low, activation.high), greatest
    wide = slope.to(y.dtype)
    return torch.where(y >= 0, y, wide * y), greatest * wide.abs().clamp(min=1)


def _levels(levels, y):
    q = level_numbers(y, levels.bits, torch.tensor(levels.low), torch.tensor(levels.step))
    return (q - 128).to(torch.int8)


def _signs(case, y):
    if case.tensors.threshold is None:
        return torch.where(y >= 0, 1, -1)
    sense, least = case.tensors.threshold
    return torch.where(sense * y >= least, 1, -1)


def _unpacked(words, channels):
    within = torch.arange(channels)
    return torch.where((words[..., within // 32] >> (within % 32)) & 1 == 1, 1, -1)
