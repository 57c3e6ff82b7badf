"""What follows a product on its own, and pooling, in Triton's interpreter against plain torch."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from models.attributes import Activation
from models.kernels.product_shape import Epilogue, Levels, ProductShape, ProductTensors

pytest.importorskip("triton")

from models.kernels.triton import operators

PLAIN = runpy.run_path(str(Path(__file__).with_name("plain_gpu_kernels.py")))["PlainKernels"]()

LEVELS = Levels(8, -2.0, 0.125, 16)
BIT = Levels(1, -0.5, 1.0, None)
DTYPES = operators.KINDS


def numbers(kind, channels, seed=3):
    torch.manual_seed(seed)
    x = torch.randn(2, 3, 5, channels)
    return (40 * x).round().to(torch.int8) if kind == "i8" else x.to(DTYPES[kind])


@pytest.mark.parametrize(
    "epilogue",
    [
        Epilogue("f16", "f32", affine=True, residual="f32", activation=Activation("prelu")),
        Epilogue("f32", "f16", residual="f16", activation=Activation("relu")),
        Epilogue("f32", "i8", kept_levels=LEVELS, activation=Activation("hardtanh", -1.0, 1.5)),
        Epilogue("f32", "i8", kept_levels=BIT, affine=True),
        Epilogue("f32", "f32", also_levels=LEVELS, residual="f32"),
        Epilogue("i8", "f32", LEVELS),
        Epilogue("i8", "i8", LEVELS, LEVELS, affine=True),
        Epilogue("f16", "b1"),
        Epilogue("f32", "b1", threshold=True),
    ],
    ids=lambda epilogue: f"{epilogue.read}-{epilogue.kept}",
)
@pytest.mark.parametrize("channels", [3, 70])
def test_numbers_are_finished_to_the_bit(epilogue, channels):
    x = numbers(epilogue.read, channels)
    tensors = ProductTensors(
        affine=torch.randn(2, channels) if epilogue.affine else None,
        slope=torch.randn(channels),
        threshold=torch.stack([torch.randn(channels).sign(), torch.randn(channels)])
        if epilogue.threshold
        else None,
        residual=numbers(epilogue.residual, channels, seed=4) if epilogue.residual else None,
    )
    if epilogue.also_levels is not None:
        tensors = replace(tensors, also=torch.full((2, 3, 5, channels), 77, dtype=torch.int8))
    shape = ProductShape(channels, channels, in_hw=(3, 5)).out_shape(2, epilogue.kept)
    out, expected = (torch.full(shape, 77, dtype=DTYPES[epilogue.kept]) for _ in range(2))
    operators.launch_elementwise(x, tensors, channels, epilogue, out)
    PLAIN.elementwise(x, tensors, channels, epilogue, expected)
    assert torch.equal(out, expected)
    if epilogue.also_levels is not None:
        levels = replace(epilogue, kept="i8", kept_levels=LEVELS, also_levels=None)
        PLAIN.elementwise(x, tensors, channels, levels, expected)
        assert torch.equal(tensors.also.float(), expected)


@pytest.mark.parametrize(
    "windows", [((2, 2), (2, 2), (0, 0)), ((3, 3), (2, 1), (1, 1)), ((3, 5), (1, 1), (0, 0))]
)
@pytest.mark.parametrize(
    ("kind", "maximum"),
    [("f16", True), ("f16", False), ("f32", True), ("f32", False), ("i8", True)],
)
def test_pools(kind, windows, maximum):
    x = numbers(kind, 33)
    pool = F.max_pool2d if maximum else F.avg_pool2d
    expected = pool(x.float().permute(0, 3, 1, 2), *windows).permute(0, 2, 3, 1).contiguous()
    out = torch.full(expected.shape, 77, dtype=x.dtype)
    operators.launch_pool(x, out, maximum, *windows)
    assert torch.equal(out, expected.to(x.dtype))


def test_not_a_number_stays_what_it_is():
    x = numbers("f32", 4)
    x[0, 0, 0, 0] = float("nan")
    out = torch.zeros(2, 1, 1, 4)
    operators.launch_pool(x, out, True, (3, 5), (1, 1), (0, 0))
    assert out[0, 0, 0, 0].isnan() and out[0, 0, 0, 1:].isfinite().all()
    relu = Epilogue("f32", "f32", activation=Activation("relu"))
    kept = torch.zeros_like(x)
    operators.launch_elementwise(x, ProductTensors(), 4, relu, kept)
    assert kept[0, 0, 0, 0].isnan() and kept.isnan().sum() == 1


def test_operators_are_well_formed():
    x, out = numbers("f32", 4), torch.empty(2, 3, 5, 4)
    text = operators.encoded(ProductShape(4, 4), Epilogue("f32", "f32", affine=True))
    torch.library.opcheck(
        operators._finish_numbers, (x, out, torch.randn(2, 4), None, None, None, None, text)
    )
    pooled = torch.empty(2, 1, 2, 4)
    torch.library.opcheck(operators._pool, (x, pooled, False, [2, 2], [2, 2], [0, 0]))
