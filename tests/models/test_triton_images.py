"""Images becoming channels last, in Triton's interpreter against plain torch, and compiled."""

import runpy
from pathlib import Path

import pytest
import torch

from models.kernels.image_windows import ImageWindows
from models.kernels.product_shape import Levels

pytest.importorskip("triton")

from models.kernels.triton import images as kernels
from models.kernels.triton.images import launch_images

HERE = Path(__file__)
PLAIN = runpy.run_path(str(HERE.with_name("plain_gpu_kernels.py")))["PlainKernels"]()
COMPILED = runpy.run_path(str(HERE.with_name("compiled_kernels.py")))

LEVELS = Levels(8, -2.0, 0.03125, 64)
BIT = Levels(1, -0.5, 1.0, None)
FORMS = [(torch.float16, None), (torch.float32, None), (torch.int8, LEVELS), (torch.int8, BIT)]


@pytest.mark.parametrize(("dtype", "levels"), FORMS)
@pytest.mark.parametrize("shape", [(3, 3, 37, 41), (1, 1, 8, 8), (2, 37, 5, 3), (2, 4, 1, 1)])
def test_images_become_channels_last(shape, dtype, levels):
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    count, channels, height, width = shape
    out, expected = (
        torch.full((count, height, width, channels), 77, dtype=dtype) for _ in range(2)
    )
    launch_images(images, out, levels)
    PLAIN.images(images, expected, levels)
    assert torch.equal(out, expected)


@pytest.mark.parametrize(("dtype", "levels"), FORMS[::2])
@pytest.mark.parametrize(
    "windows", [ImageWindows(7, 2, 3, 1.0), ImageWindows(3, 1, 1, -64.0), ImageWindows(4, 3)]
)
@pytest.mark.parametrize("shape", [(2, 3, 5, 19), (1, 8, 3, 6)])
def test_pixels_that_a_row_of_a_kernel_reads_stand_side_by_side(shape, windows, dtype, levels):
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    count, channels, height, width = shape
    size = (count, height, windows.count(width), windows.columns * channels)
    out, expected = (torch.full(size, 77, dtype=dtype) for _ in range(2))
    launch_images(images, out, levels, windows)
    PLAIN.images(images, expected, levels, windows)
    assert torch.equal(out, expected)


@pytest.mark.parametrize(
    ("images", "out", "levels", "reason"),
    [
        (torch.zeros(1, 2, 3, 4).double(), torch.zeros(1, 3, 4, 2), None, "float32"),
        (torch.zeros(1, 2, 3, 4).mT, torch.zeros(1, 4, 3, 2), None, "contiguous"),
        (torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), None, "channels last"),
        (torch.zeros(1, 2, 3, 4), torch.zeros(1, 3, 4, 2), LEVELS, "levels"),
        (torch.zeros(1, 2, 3, 4), torch.zeros(1, 3, 4, 2).char(), None, "levels"),
    ],
)
def test_other_tensors_are_refused(images, out, levels, reason):
    with pytest.raises(ValueError, match=reason):
        launch_images(images, out, levels)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("dtype", "levels"), FORMS)
def test_it_compiles(capability, dtype, levels, monkeypatch):
    launches = COMPILED["Launches"]()
    monkeypatch.setattr(kernels, "launch", launches)
    launch_images(torch.zeros(2, 3, 32, 32), torch.zeros(2, 32, 32, 3, dtype=dtype), levels)
    assert "st.global" in COMPILED["compile_launch"](launches[0], capability)


def test_it_is_an_operator_of_torch():
    images, out = torch.randn(2, 3, 4, 5), torch.zeros(2, 4, 5, 3)
    torch.library.opcheck(
        torch.ops.bitpress.channels_last, (images, out, [1, 1, 0], [0.0, 1.0, 0.0], 0)
    )
