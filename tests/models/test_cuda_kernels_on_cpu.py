"""The arithmetic of the CUDA kernels, on a processor: their sources, compiled by g++.

tests/native/device_on_cpu.h stands in for the GPU's own instructions, which it computes from their
description. What only a GPU can tell is whether it does the same.
"""

import ctypes
import itertools
import runpy
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models import bits
from models.kernels.cuda import launch_product, operators, tap_sums
from models.kernels.cuda.configurations import NARROW, TILES, Popcount, Tiles, candidates
from models.kernels.product_shape import Epilogue, ProductShape

REPOSITORY = Path(__file__).parents[2]
HOPPER = (9, 0)
GUARD = 64  # numbers behind a result that nobody may touch

made = runpy.run_path(str(Path(__file__).with_name("sign_products.py")))

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")


class _Grid(ctypes.Structure):
    _fields_ = [
        ("across", ctypes.c_int),
        ("down", ctypes.c_int),
        ("deep", ctypes.c_int),
        ("seed", ctypes.c_uint64),
        ("late_copies", ctypes.c_int),
    ]


class Kernel:
    """A kernel of a CUDA source, in a library of its own."""

    def __init__(self, path, name, configuration):
        self.library = ctypes.CDLL(str(path))
        self.library.set_constant.argtypes = [ctypes.c_char_p, ctypes.c_double]
        self.name = name
        tensor_cores = isinstance(configuration, Tiles)
        self.built_in = {one.upper() for one in asdict(configuration)} if tensor_cores else ()

    @contextmanager
    def instead_of_a_device(self, *, seed=0, late_copies=True):
        """Let the operators launch this kernel, on tensors in the processor's memory."""

        def enqueue(kernel, constants, grid, threads, arguments, device):
            assert (kernel, threads) == (self.name, self.library.threads())
            for name, value in constants.items():
                known = name in self.built_in or self.library.set_constant(name.encode(), value)
                assert known, name
            given = [address(one) if isinstance(one, Tensor) else one for one in arguments]
            self.library.run(ctypes.byref(_Grid(*grid, seed, late_copies)), *given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(operators, "enqueue", enqueue)
            patch.setattr(torch.ops.bitpress, "conv_bits_b1", operators._run_product)
            yield

    def run_product(self, product, configuration, **run):
        """Return what the kernel keeps of a product, and the levels that it keeps besides."""
        words, tensors = product.tensors(tap_sums, "cpu")
        out = Guarded(product.out_shape, product.out_dtype)
        also = Guarded(product.shape.out_shape(len(product.x), "i8"), np.int8)
        if product.epilogue.also_levels is not None:
            tensors = replace(tensors, also=also.tensor)
        with self.instead_of_a_device(**run):
            launch_product(
                torch.from_numpy(product.x_words),
                words,
                tensors,
                product.shape,
                product.epilogue,
                out.tensor,
                configuration,
            )
        return out.numbers(), also.numbers()


class Guarded:
    """A tensor that holds anything, in front of memory that nobody may touch."""

    def __init__(self, shape, dtype):
        count = int(np.prod(shape))
        noise = np.random.default_rng(1).integers(-99, 99, count + GUARD).astype(dtype)
        self._whole = torch.from_numpy(noise)
        self._behind = noise[count:].copy()
        self.tensor = self._whole[:count].view(*shape)

    def numbers(self):
        """Return what is in the tensor now, and see that the guard is as it was."""
        np.testing.assert_array_equal(self._whole[-GUARD:].numpy(), self._behind)
        return self.tensor.numpy()


def address(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Compiles a kernel, once for each configuration."""
    folder, built = tmp_path_factory.mktemp("kernels"), {}

    def build(name, configuration=None):
        if (name, configuration) not in built:
            built[name, configuration] = compiled(folder, name, configuration, len(built))
        return built[name, configuration]

    return build


def compiled(folder, name, configuration, number):
    target = folder / f"{name}-{number}.so"
    defined = [f"RUNS_{name.upper()}"]
    if isinstance(configuration, Tiles):
        defined += [f"{key.upper()}={value}" for key, value in asdict(configuration).items()]
    subprocess.run(
        [
            "g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off",
            "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
            f"-I{REPOSITORY}/models/kernels/cuda", f"-I{REPOSITORY}/tests/native",
            *(f"-D{definition}" for definition in defined),
            str(REPOSITORY / "tests/native/kernels_on_cpu.cpp"), "-o", str(target),
        ],
        check=True,
    )  # fmt: skip
    return Kernel(target, name, configuration)


def check(kernel, product, configuration, **run):
    found, levels = kernel.run_product(product, configuration, **run)
    np.testing.assert_array_equal(found, made["expected"](product), err_msg=str(product.shape))
    if product.epilogue.also_levels is not None:
        np.testing.assert_array_equal(levels, made["expected_levels"](product))


@pytest.mark.parametrize("configuration", TILES, ids=str)
@pytest.mark.parametrize("kept", ["f16", "f32", "i8", "b1"])
def test_tensor_cores_make_what_the_formulas_say(build, configuration, kept):
    kernel = build("tensor_product", configuration)
    for seed in range(4):
        product = made["random_product"](seed, kept=kept, whole_words=True)
        assert configuration in candidates(product.shape, HOPPER)
        check(kernel, product, configuration, seed=seed, late_copies=seed % 2 == 0)


@pytest.mark.parametrize("channels", [1, 31, 32, 33, 64, 96, 128, 160, 256, 300])
@pytest.mark.parametrize("kept", ["f32", "b1"])
def test_any_number_of_channels_fills_whole_words(build, channels, kept):
    rng = np.random.default_rng(channels)
    shape = ProductShape(channels, 9, (3, 3), padding=(1, 1), in_hw=(3, 4))
    product = made["SignProduct"](
        shape,
        Epilogue("b1", kept),
        2 * rng.integers(0, 2, (2, 3, 4, channels), dtype=np.int8) - 1,
        2 * rng.integers(0, 2, (1, 9, channels, 3, 3), dtype=np.int8) - 1,
        {},
    )
    check(build("tensor_product", NARROW), product, NARROW)
    check(build("popcount_product"), product, Popcount())


@pytest.mark.parametrize("kept", ["f16", "f32", "i8", "b1"])
def test_popcounts_make_what_the_formulas_say(build, kept):
    for seed in range(8):
        check(build("popcount_product"), made["random_product"](seed, kept=kept), Popcount())


def test_each_channel_of_its_own_is_a_group_too(build):
    rng = np.random.default_rng(7)
    shape = ProductShape(37, 74, (3, 3), (2, 1), (1, 1), groups=37, in_hw=(6, 5))
    product = made["SignProduct"](
        shape,
        Epilogue("b1", "b1"),
        2 * rng.integers(0, 2, (2, 6, 5, 37), dtype=np.int8) - 1,
        2 * rng.integers(0, 2, (1, 74, 1, 3, 3), dtype=np.int8) - 1,
        {},
    )
    check(build("popcount_product"), product, Popcount())


def test_a_linear_layer_is_the_product_that_the_bit_contract_states(build):
    rng = np.random.default_rng(3)
    x, weights = (2 * rng.integers(0, 2, (n, 333), dtype=np.int8) - 1 for n in (5, 40))
    product = made["SignProduct"](
        ProductShape(333, 40),
        Epilogue("b1", "f32"),
        x[:, None, None],
        weights[None, :, :, None, None],
        {},
    )
    packed = (bits.pack(codes) for codes in (x, weights))
    wanted = bits.dot_w1a1_and(*packed, valid_bits=333)
    for configuration in (*TILES, Popcount()):
        tensor = isinstance(configuration, Tiles)
        kernel = build(
            "tensor_product" if tensor else "popcount_product", *[configuration] * tensor
        )
        found, _ = kernel.run_product(product, configuration)
        np.testing.assert_array_equal(found[:, 0, 0], wanted)


@pytest.mark.parametrize("configuration", TILES, ids=str)
def test_no_order_of_threads_and_copies_matters(build, configuration):
    kernel = build("tensor_product", configuration)
    product = made["random_product"](11, kept="b1", whole_words=True, most_channels=100, bases=2)
    for seed, late_copies in itertools.product(range(3), (False, True)):
        check(kernel, product, configuration, seed=seed, late_copies=late_copies)


@pytest.mark.parametrize("name", ["x", "residual"])
def test_what_lies_between_multiples_of_16_bytes_is_refused(build, name):
    product = made["random_product"](3, kept="f32", whole_words=True)
    words, tensors = product.tensors(tap_sums, "cpu")
    epilogue = replace(product.epilogue, residual="f32")
    out = torch.empty(product.out_shape)
    found = {"x": torch.from_numpy(product.x_words), "residual": torch.empty_like(out)}
    whole = torch.zeros(found[name].numel() + 1, dtype=found[name].dtype)
    found[name] = whole[1:].view_as(found[name])
    kernel = build("popcount_product")
    with kernel.instead_of_a_device(), pytest.raises(ValueError, match="16 bytes"):
        also = None if epilogue.also_levels is None else out.to(torch.int8)
        tensors = replace(tensors, residual=found["residual"], also=also)
        launch_product(found["x"], words, tensors, product.shape, epilogue, out, Popcount())


def test_tap_sums_are_sums_over_rectangles_of_taps():
    product = made["random_product"](5, bases=2)
    table = tap_sums(torch.from_numpy(product.weight_words), product.shape).numpy()
    rows, columns = product.shape.kernel
    for i, j in itertools.product(range(rows + 1), range(columns + 1)):
        wanted = product.weights[..., :i, :j].sum(axis=(2, 3, 4), dtype=np.int64)
        np.testing.assert_array_equal(table[:, i, j], wanted)
