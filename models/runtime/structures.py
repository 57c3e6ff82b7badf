"""The structs of the CPU engine's C interface, models/kernels/cpu/abi.h, for ctypes.

They have the members of that header's, under the same names, which a test compares.
"""

from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p, sizeof
from typing import Final

from models.runtime.flat_program import Step, Value


class CValue(Structure):
    """bp_value."""

    _fields_ = (
        ("offset", c_int64),
        ("channels", c_int64),
        ("height", c_int64),
        ("width", c_int64),
        ("type", c_int32),
        ("unused", c_int32),
    )


class CStep(Structure):
    """bp_step; pointers as addresses."""

    _fields_ = (
        ("kind", c_int32),
        ("in0", c_int32),
        ("in1", c_int32),
        ("out_f32", c_int32),
        ("out_u8", c_int32),
        ("activation", c_int32),
        ("activation_low", c_float),
        ("activation_high", c_float),
        ("low", c_float),
        ("step", c_float),
        ("bits", c_int32),
        ("in_zero", c_int32),
        ("in_low", c_float),
        ("in_step", c_float),
        ("gain", c_void_p),
        ("shift", c_void_p),
        ("slope", c_void_p),
        ("kernel_rows", c_int64),
        ("kernel_columns", c_int64),
        ("stride_rows", c_int64),
        ("stride_columns", c_int64),
        ("padding_rows", c_int64),
        ("padding_columns", c_int64),
        ("dilation_rows", c_int64),
        ("dilation_columns", c_int64),
        ("groups", c_int64),
        ("packed_bits", c_void_p),
        ("row_bytes", c_int64),
        ("weight", c_void_p),
        ("base_scale", c_void_p),
        ("bases", c_int64),
        ("pad_value", c_int32),
        ("kernel", c_int32),
        ("channel_offset", c_int64),
        ("filters", c_int64),
    )


class CSpec(Structure):
    """bp_program_spec."""

    _fields_ = (
        ("isa", c_int32),
        ("threads", c_int32),
        ("max_images", c_int64),
        ("arena_bytes", c_int64),
        ("value_count", c_int64),
        ("values", POINTER(CValue)),
        ("step_count", c_int64),
        ("steps", POINTER(CStep)),
    )


# What bp_abi_sizes of a library tells that was built of the same header.
SIZES: Final = sizeof(CValue) | sizeof(CStep) << 16 | sizeof(CSpec) << 32


def c_value(value: Value, offset: int = 0) -> CValue:
    """Return bp_value of ``value``."""
    return CValue(offset, value.channels, value.height, value.width, value.type, 0)


def c_step(step: Step) -> CStep:
    """Return bp_step of ``step``, which has to outlive it: it points to the same arrays."""
    members = {**vars(step)}
    for name, array in step.arrays().items():
        if not array.flags.c_contiguous:
            raise ValueError(f"{name} is not contiguous")
        members[name] = array.ctypes.data
    return CStep(**members)
