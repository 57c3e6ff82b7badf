"""What a kernel is compiled with: the constants in capitals that its source leaves open."""

from collections.abc import Mapping
from dataclasses import asdict
from math import gcd
from types import MappingProxyType
from typing import Final

from models.attributes import Activation
from models.kernels.cuda.configurations import Configuration, Tiles
from models.kernels.product_shape import Epilogue, Levels, ProductShape, ValueKind, kept_channels

Constants = Mapping[str, int | float]

KINDS: Final[Mapping[ValueKind | None, int]] = MappingProxyType(
    {None: 0, "f16": 1, "f32": 2, "i8": 3, "b1": 4}
)
_FUNCTIONS: Final = MappingProxyType({"relu": 1, "hardtanh": 2, "prelu": 3})
_NO_LEVELS: Final = Levels(8, 0.0, 1.0, 0)
_NO_ACTIVATION: Final = Activation("relu")


def product_constants(
    shape: ProductShape, epilogue: Epilogue, configuration: Configuration
) -> Constants:
    """Return the constants of the kernel that computes ``shape`` and finishes it so."""
    tiles = {name.upper(): size for name, size in asdict(configuration).items()}
    if isinstance(configuration, Tiles):
        # As large as addresses allow: every tap of a pixel begins a multiple of so many words.
        tiles["COPY_WORDS"] = gcd(shape.tap_words, 4)
    return {
        **(tiles if isinstance(configuration, Tiles) else {}),
        **_geometry(shape),
        **_finishing(epilogue),
    }


def definitions(constants: Constants) -> str:
    """Return the constants as C++ gives them names; numbers are exact."""
    return "".join(f"#define {name} {_literal(value)}\n" for name, value in constants.items())


def _literal(value: int | float) -> str:
    return f"({value.hex()}f)" if isinstance(value, float) else f"({value})"


def _geometry(shape: ProductShape) -> Constants:
    pairs = {
        "IN": shape.in_hw,
        "OUT": shape.out_hw,
        "KERNEL": shape.kernel,
        "STRIDE": shape.stride,
        "PADDING": shape.padding,
        "DILATION": shape.dilation,
    }
    return {
        **{f"{name}_ROWS": pair[0] for name, pair in pairs.items()},
        **{f"{name}_COLUMNS": pair[1] for name, pair in pairs.items()},
        "IN_WORDS": kept_channels(shape.in_channels, "b1"),
        "OUT_WORDS": kept_channels(shape.filters, "b1"),
        "PADDING_OF_ONES": shape.pad_value,
        "TAPS": shape.taps,
        "TAP_WORDS": shape.tap_words,
        "GROUP_CHANNELS": shape.group_channels,
        "GROUP_FILTERS": shape.group_filters,
        "FILTERS": shape.filters,
        "BASES": shape.bases,
    }


def _finishing(epilogue: Epilogue) -> Constants:
    levels = epilogue.kept_levels or epilogue.also_levels
    function = epilogue.activation or _NO_ACTIVATION
    return {
        "HAS_BASE_SCALE": int(epilogue.base_scale),
        "HAS_AFFINE": int(epilogue.affine),
        "RESIDUAL": KINDS[epilogue.residual],
        "ACTIVATION": _FUNCTIONS[function.kind] if epilogue.activation else 0,
        "ACTIVATION_LOW": float(function.low),
        "ACTIVATION_HIGH": float(function.high),
        "KEPT": KINDS[epilogue.kept],
        "HAS_LEVELS": int(levels is not None),
        "LEVEL_LOW": float((levels or _NO_LEVELS).low),
        "LEVEL_STEP": float((levels or _NO_LEVELS).step),
        "LEVEL_BITS": (levels or _NO_LEVELS).bits,
        "HAS_THRESHOLD": int(epilogue.threshold),
    }
