"""The operator for signs: what it tells a tracer and refuses, and on a GPU, what it computes."""

import math
import runpy
import secrets
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.kernels.cuda import (
    candidates,
    choose,
    heuristic,
    launch_product,
    tap_sums,
    tuning,
)
from models.kernels.cuda.configurations import MIDDLE, NARROW, WIDE, Popcount
from models.kernels.product_shape import Epilogue, ProductShape, ProductTensors

made = runpy.run_path(str(Path(__file__).with_name("sign_products.py")))

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")

SHAPE = ProductShape(40, 24, (3, 3), padding=(1, 1), in_hw=(5, 6), bases=2)
EPILOGUE = Epilogue("b1", "b1", affine=True, residual="f16", threshold=True)


def on_meta(dtype, *sizes):
    return torch.empty(sizes, dtype=dtype, device="meta")


def arguments():
    return {
        "x": on_meta(torch.int32, 3, 5, 6, 2),
        "words": on_meta(torch.int32, 2, 24, 9, 2),
        "tensors": ProductTensors(
            affine=on_meta(torch.float32, 2, 24),
            threshold=on_meta(torch.float32, 2, 24),
            residual=on_meta(torch.float16, 3, 5, 6, 24),
            tap_sums=on_meta(torch.int32, 2, 4, 4, 24),
        ),
        "shape": SHAPE,
        "epilogue": EPILOGUE,
        "out": on_meta(torch.int32, 3, 5, 6, 1),
        "config": NARROW,
    }


def test_a_tracer_sees_products_without_a_gpu():
    launch_product(**arguments())
    launch_product(**arguments() | {"config": Popcount()})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", on_meta(torch.int32, 3, 5, 6, 1)),
        ("x", on_meta(torch.int64, 3, 5, 6, 2)),
        ("x", on_meta(torch.int32, 3, 5, 6, 4)[..., ::2]),
        ("words", on_meta(torch.int32, 2, 24, 9, 1)),
        ("out", on_meta(torch.float16, 3, 5, 6, 24)),
        ("epilogue", replace(EPILOGUE, read="f16")),
        ("epilogue", replace(EPILOGUE, residual="f32")),
        ("epilogue", replace(EPILOGUE, base_scale=True)),
        ("epilogue", replace(EPILOGUE, affine=False)),
        ("tensors", replace(arguments()["tensors"], also=on_meta(torch.int8, 3, 5, 6, 24))),
        ("tensors", replace(arguments()["tensors"], tap_sums=None)),
        ("tensors", replace(arguments()["tensors"], tap_sums=on_meta(torch.int32, 2, 3, 3, 24))),
    ],
)
def test_what_does_not_fit_is_refused(name, value):
    with pytest.raises(ValueError):
        launch_product(**arguments() | {name: value})


def test_the_fastest_configuration_is_chosen(monkeypatch):
    class Device:
        major, minor, multi_processor_count = 9, 0, 132

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Device)
    launched = []
    monkeypatch.setattr(tuning, "launch_product", lambda *passed: launched.append(passed[-1]))
    given = {name: value for name, value in arguments().items() if name != "config"}

    def taking(*seconds):
        def measure(launches):
            for launch in launches:
                launch()
            return seconds

        return measure

    assert choose(**given, seconds=taking(3.0, 1.0, 2.0)) == MIDDLE
    assert launched == [WIDE, MIDDLE, NARROW]
    assert choose(**given, seconds=taking(math.inf, math.inf, 5.0)) == NARROW
    rule = heuristic(SHAPE, 3, (9, 0), 132)
    assert choose(**given, seconds=taking(*[math.inf] * 3)) == rule
    assert choose(**given, seconds=None) == rule
    odd = given | {"shape": replace(SHAPE, groups=2)}
    assert choose(**odd, seconds=taking()) == Popcount()  # there is no other


def test_the_operator_says_what_it_writes_to():
    schema = torch.ops.bitpress.conv_bits_b1.default._schema
    written = {one.name for one in schema.arguments if one.alias_info and one.alias_info.is_write}
    assert written == {"out", "also"}


# Products that tensor cores can compute, and those of which groups are no whole words.
# Other ones in every run; a failure tells the seed.
FRESH = secrets.randbits(32)
PRODUCTS = [(seed, True) for seed in range(5)] + [(seed, False) for seed in range(3)]


def on_gpu(product):
    """Return what `launch_product` takes, the result full of noise."""
    words, tensors = product.tensors(tap_sums, "cuda")
    if product.epilogue.also_levels is not None:
        sizes = product.shape.out_shape(len(product.x), "i8")
        also = torch.full(sizes, 77, dtype=torch.int8, device="cuda")
        tensors = replace(tensors, also=also)
    out = np.random.default_rng(5).integers(-99, 99, product.out_shape).astype(product.out_dtype)
    return {
        "x": torch.from_numpy(product.x_words).cuda(),
        "words": words,
        "tensors": tensors,
        "shape": product.shape,
        "epilogue": product.epilogue,
        "out": torch.from_numpy(out).cuda(),
    }


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize(("seed", "whole_words"), PRODUCTS)
def test_a_gpu_makes_what_the_formulas_say(seed, whole_words):
    seed += FRESH
    product = made["random_product"](seed, whole_words=whole_words)
    capability = torch.cuda.get_device_capability()
    for config in {*candidates(product.shape, capability), Popcount()}:
        given = on_gpu(product)
        launch_product(**given, config=config)
        told, found = f"seed {seed}, {config}", given["out"].cpu().numpy()
        np.testing.assert_array_equal(found, made["expected"](product), err_msg=told)
        if product.epilogue.also_levels is not None:
            also = given["tensors"].also.cpu().numpy()
            np.testing.assert_array_equal(also, made["expected_levels"](product), err_msg=told)


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize(
    "shape",
    [
        ProductShape(64, 64, (3, 3), padding=(1, 1), in_hw=(56, 56)),
        ProductShape(256, 512, (3, 3), (2, 2), (1, 1), in_hw=(14, 14), pad_value=1),
        ProductShape(9216, 4096),
    ],
    ids=["conv 64", "conv 256", "linear 9216"],
)
def test_layers_of_known_networks_are_exact(shape):
    generator = torch.Generator().manual_seed(0)

    def drawn(*sizes):
        return torch.randint(0, 2, sizes, generator=generator, dtype=torch.int8).numpy() * 2 - 1

    x = drawn(2, *shape.in_hw, shape.in_channels)
    weights = drawn(1, shape.filters, shape.group_channels, *shape.kernel)
    product = made["SignProduct"](shape, Epilogue("b1", "f32"), x, weights, {})
    capability = torch.cuda.get_device_capability()
    wanted = exact_sums(product)
    for config in candidates(shape, capability):
        given = on_gpu(product)
        launch_product(**given, config=config)
        assert torch.equal(given["out"].double(), wanted)


def exact_sums(product):
    """Return the sums, channels last, from torch's convolution in float64."""
    shape = product.shape
    x = torch.from_numpy(product.x).cuda().double().permute(0, 3, 1, 2)
    top, left = shape.padding
    x = torch.nn.functional.pad(x, (left, left, top, top), value=shape.pad_value)
    weights = torch.from_numpy(product.weights[0]).cuda().double()
    return torch.nn.functional.conv2d(x, weights, stride=shape.stride).permute(0, 2, 3, 1)


@pytest.mark.gpu
@on_a_gpu
def test_the_operator_keeps_torchs_rules():
    product = made["random_product"](2, kept="f16", whole_words=True)
    given = on_gpu(product)
    seen = []

    def remember(*passed):
        seen.append(passed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.ops.bitpress, "conv_bits_b1", remember)
        launch_product(**given, config=NARROW)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.bitpress.conv_bits_b1, seen[0], test_utils=checks)


@pytest.mark.gpu
@on_a_gpu
def test_a_graph_replays_a_product():
    product = made["random_product"](4, kept="b1", whole_words=True)
    given = on_gpu(product)
    properties = torch.cuda.get_device_properties(0)
    capability = (properties.major, properties.minor)
    config = heuristic(product.shape, len(product.x), capability, properties.multi_processor_count)
    launch_product(**given, config=config)  # a kernel is loaded before a graph is captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch_product(**given, config=config)
    given["out"].fill_(-1)
    graph.replay()
    np.testing.assert_array_equal(given["out"].cpu().numpy(), made["expected"](product))


@pytest.mark.gpu
@on_a_gpu
def test_no_images_are_no_work():
    product = made["random_product"](0, kept="f16", whole_words=True)
    given = on_gpu(
        replace(
            product,
            x=product.x[:0],
            numbers={
                name: array[:0] if name == "residual" else array
                for name, array in product.numbers.items()
            },
        )
    )
    launch_product(**given, config=WIDE)
