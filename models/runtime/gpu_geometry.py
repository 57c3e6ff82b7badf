"""Of which shape a product is for a kernel: of whole maps, of rows of images, or of vectors."""

from dataclasses import replace
from typing import Final, Literal

from models.kernels.image_windows import ImageWindows
from models.kernels.product_shape import LEVEL_OFFSET, Levels, ProductShape
from models.runtime.flat_program import FlatProgram, Step
from models.runtime.gpu_program import is_linear

NumberKind = Literal["f16", "f32"]

# Of more, a pixel's channels fill so much of a word that laying pixels side by side saves little.
_FEW_CHANNELS: Final = 8


def product_shape(flat: FlatProgram, step: Step) -> ProductShape:
    """Return the product that ``step`` of ``flat`` computes."""
    source = flat.values[step.in0]
    return ProductShape(
        in_channels=source.channels,
        filters=step.filters,
        kernel=(step.kernel_rows, step.kernel_columns),
        stride=(step.stride_rows, step.stride_columns),
        padding=(step.padding_rows, step.padding_columns),
        dilation=(step.dilation_rows, step.dilation_columns),
        groups=step.groups,
        in_hw=(source.height, source.width),
        bases=step.bases,
        pad_value=1 if step.pad_value else 0,
    )


def as_linear(shape: ProductShape) -> ProductShape:
    """Return the same product as that of a vector, where its kernel is as large as the map."""
    if shape.kernel != shape.in_hw or shape.padding != (0, 0) or shape.groups != 1:
        return shape
    numbers = shape.in_channels * shape.taps
    return ProductShape(in_channels=numbers, filters=shape.filters, bases=shape.bases)


def windows_of(product: Step, levels: Levels | None) -> ImageWindows:
    """Return how the images are laid out that ``product`` reads, as numbers or as ``levels``."""
    outside = product.pad_value if levels is None else (levels.zero or 0) - LEVEL_OFFSET
    return ImageWindows(
        product.kernel_columns, product.stride_columns, product.padding_columns, float(outside)
    )


def by_rows(shape: ProductShape) -> ProductShape:
    """Return the same product of images laid out by `windows_of`: a tap is a row of its kernel."""
    columns = shape.kernel[1]
    return replace(
        shape,
        in_channels=columns * shape.in_channels,
        kernel=(shape.kernel[0], 1),
        stride=(shape.stride[0], 1),
        padding=(shape.padding[0], 0),
        dilation=(shape.dilation[0], 1),
        in_hw=(shape.in_hw[0], shape.out_hw[1]),
    )


def float_kind(shape: ProductShape) -> NumberKind:
    """Return in what a product with float weights is computed: the logits of a last layer are
    told apart in float32, and it reads each weight once either way."""
    return "f32" if is_linear(shape) else "f16"


def wastes_words(product: Step, shape: ProductShape) -> bool:
    """Tell whether a ``product`` of that shape leaves most of a word empty at every pixel it reads.

    Then images are laid out anew for it, see `windows_of`.
    """
    plain = shape.groups == 1 == product.dilation_columns
    few = shape.in_channels <= _FEW_CHANNELS and product.kernel_columns > 1
    return plain and few and as_linear(shape).in_hw != (1, 1)
