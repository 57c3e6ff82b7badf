"""Runs a Triton kernel where its tensors are: compiled on a GPU, in the interpreter on a CPU."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FunctionType
from typing import Any, Final

import torch
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

# What the interpreter replaces parts of while it runs.
_CHANGED: Final = (
    tl, tl.core, tl.math, tl.standard, tl.tensor, tl.dtype, tl.core.tensor_descriptor_base,
)  # fmt: skip

_interpreter: Final = threading.RLock()


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    warps: int = 4,
    stages: int = 3,
    **constants: Any,
) -> None:
    """Run ``kernel`` on ``grid`` with ``arguments``, of which the first is a tensor.

    ``constants`` are the kernel's compile-time arguments. On a GPU the call returns at once.
    Multiplications and additions stay apart: each is rounded on its own.
    """
    first: Tensor = arguments[0]
    if first.is_cuda:
        options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False}
        with torch.cuda.device(first.device):  # Triton launches on the current one
            kernel[grid](*arguments, **constants, **options)
        return
    with _interpreting():
        interpreted(kernel)[grid](*arguments, **constants)


@cache
def interpreted(kernel: Any) -> Any:
    """Return a twin of ``kernel`` that runs in the interpreter, and calls such twins only.

    Where Triton interprets everything (TRITON_INTERPRET), that is ``kernel`` itself.
    """
    if not isinstance(kernel, JITFunction):
        return kernel
    function = kernel.fn
    names = dict(function.__globals__)
    for name in function.__code__.co_names:  # not all: the kernel itself is among them
        if isinstance(names.get(name), JITFunction):
            names[name] = interpreted(names[name])
    twin = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    twin.__annotations__ = function.__annotations__
    twin.__module__ = function.__module__
    return InterpretedFunction(twin)


@contextmanager
def _interpreting() -> Iterator[None]:
    """Have Triton's own functions in Triton, such as ``tl.zeros``, interpreted too.

    The interpreter does not take back all that it changes; then nothing could be compiled later.
    """
    with _interpreter:
        before = [(holder, dict(vars(holder))) for holder in _CHANGED]
        interpret = knobs.runtime.interpret
        knobs.runtime.interpret = True
        for holder, names in before:
            for name, value in names.items():
                if isinstance(value, JITFunction):
                    setattr(holder, name, interpreted(value))
        try:
            yield
        finally:
            knobs.runtime.interpret = interpret
            for holder, names in before:
                _restore(holder, names)


def _restore(holder: Any, names: dict[str, Any]) -> None:
    for name in vars(holder).keys() - names.keys():
        delattr(holder, name)
    for name, value in names.items():
        if vars(holder).get(name) is not value:
            setattr(holder, name, value)


def blocks(length: int, block: int) -> int:
    """Return how many blocks cover ``length``."""
    return -(-length // block)
