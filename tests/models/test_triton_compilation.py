"""Every Triton kernel compiles for GPUs of two generations, to the instructions that are meant."""

import re
import runpy
from pathlib import Path

import pytest
import torch

from models.attributes import Activation
from models.kernels.product_shape import Epilogue, Levels, ProductShape, ProductTensors

pytest.importorskip("triton")

from models.kernels.triton import elementwise, operators, product_launch
from models.kernels.triton.configurations import Configuration

compiled = runpy.run_path(str(Path(__file__).with_name("compiled_kernels.py")))
compile_launch, spilled_bytes = compiled["compile_launch"], compiled["spilled_bytes"]

BYTES = Levels(8, 0.0, 0.25, 0)
CONVOLUTION = ProductShape(128, 128, (3, 3), padding=(1, 1), in_hw=(14, 14))
LINEAR = ProductShape(512, 128)
TENSOR_CORE = {
    (80, "f16"): r"mma\.sync\.aligned\.m16n8k16\S*\.f16\.f16\.",
    (80, "i8"): r"mma\.sync\.aligned\.m16n8k32\S*\.s8\.s8\.",
    (90, "f16"): r"wgmma\.mma_async\.sync\.aligned\.m64n64k16\.f32\.f16\.f16",
    (90, "i8"): r"wgmma\.mma_async\.sync\.aligned\.m64n64k32\.s32\.s8\.s8",
}
LEVELS = {"read_levels": BYTES, "kept_levels": BYTES}


@pytest.fixture(autouse=True)
def _nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.fixture
def launches(monkeypatch):
    found = compiled["Launches"]()
    for module in (product_launch, elementwise):
        monkeypatch.setattr(module, "launch", found)
    return found


def nowhere(shape, kind):
    return torch.empty(shape, dtype=operators.KINDS[kind], device="meta")


def epilogue(read):
    levels = BYTES if read == "i8" else None
    return Epilogue(
        read, read, levels, levels, affine=True, residual="f16", activation=Activation("relu")
    )


def launch(shape, read, config):
    description = epilogue(read)
    kept = shape.out_shape(4, "f16")
    tensors = ProductTensors(
        affine=nowhere((2, shape.filters), "f32"),
        residual=nowhere(kept, "f16"),
        offsets=nowhere((1, 9, shape.filters), "b1") if read == "i8" else None,
        places=nowhere((28,), "b1") if read == "i8" else None,
    )
    x = nowhere((4, *shape.in_hw, shape.in_channels), read)
    words = nowhere(shape.words_shape, "b1")
    product_launch.run_product(x, words, tensors, shape, description, nowhere(kept, read), config)


@pytest.mark.parametrize("read", ["f16", "i8"])
@pytest.mark.parametrize("capability", [80, 90])
def test_products_run_on_tensor_cores(launches, capability, read, tmp_path):
    hopper = capability == 90
    launch(CONVOLUTION, read, Configuration(64, 64, 64, filters_first=hopper, stages=3))
    ptx = compile_launch(launches[0], capability)
    assert re.search(TENSOR_CORE[capability, read], ptx)
    assert "cp.async.cg.shared.global" in ptx  # sixteen bytes at a time, past the registers
    assert ".local" not in ptx
    assert spilled_bytes(ptx, capability, tmp_path) == 0
    body = ptx[ptx.index("cp.async.wait_group") :]
    products = [match.start() for match in re.finditer(r"wgmma\.mma_async|mma\.sync", body)]
    # Unpacked weights stay in registers: nothing is stored between copies and products.
    assert "st.shared" not in body[: products[-1]]


@pytest.mark.parametrize("read", ["f16", "i8"])
@pytest.mark.parametrize("capability", [80, 90])
def test_linear_layers_of_few_images_run_on_tensor_cores(launches, capability, read):
    launch(LINEAR, read, Configuration(16, 8, 64, filters_first=True, slices=4))
    ptx = compile_launch(launches[0], capability)
    assert re.search(TENSOR_CORE[80, read], ptx)  # Hopper's own would want 64 filters at least
    assert "cp.async" in ptx
    assert ".local" not in ptx


@pytest.mark.parametrize("capability", [80, 90])
def test_the_other_kernels_compile(launches, capability):
    launch(CONVOLUTION, "i8", Configuration(64, 32, 64, splits=2))
    del launches[0]  # as above, but for one store
    narrow = ProductShape(32, 32, (3, 3), groups=32, in_hw=(8, 8))
    launch(narrow, "f16", Configuration(32, 16, direct=True, stages=1))
    x, signs = nowhere((4, 8, 8, 70), "f32"), nowhere((4, 8, 8, 3), "b1")
    tensors = ProductTensors(threshold=nowhere((2, 70), "f32"))
    elementwise.run_elementwise(x, tensors, 70, Epilogue("f32", "b1", threshold=True), signs)
    levels = nowhere((4, 8, 8, 64), "i8")
    elementwise.run_elementwise(
        levels, ProductTensors(), 64, Epilogue("i8", "i8", **LEVELS), levels
    )
    elementwise.run_pool(levels, nowhere((4, 4, 4, 64), "i8"), True, (3, 3), (2, 2), (1, 1))
    elementwise.run_pool(x, nowhere((4, 1, 1, 70), "f32"), False, (8, 8), (1, 1), (0, 0))
    assert [kernel.fn.__name__ for kernel, *_ in launches] == [
        "add_splits", "direct_product", "finish_numbers", "finish_numbers", "pool", "pool",
    ]  # fmt: skip
    for recorded in launches:
        ptx = compile_launch(recorded, capability)
        assert ".local" not in ptx
        assert "fma.rn" not in ptx  # each multiplication and addition is rounded
        if recorded[0].fn.__name__ in ("direct_product", "pool"):
            assert ptx.count("ld.global") > 8  # a loop that is unrolled
    quantizing = compile_launch(launches[3], capability)
    assert "div.rn.f32" in quantizing  # the true quotient, not nearly so


def test_kernels_compile_after_they_were_interpreted(monkeypatch):
    out, plain = torch.empty(1, 1, 1, 4), Epilogue("f32", "f32")
    operators.launch_elementwise(torch.ones(1, 1, 1, 4), ProductTensors(), 4, plain, out)
    found = compiled["Launches"]()
    monkeypatch.setattr(elementwise, "launch", found)
    elementwise.run_elementwise(out, ProductTensors(), 4, plain, out)
    assert "ld.global" in compile_launch(found[0], 80)
