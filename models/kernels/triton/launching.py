"""Runs a Triton kernel where its tensors are: compiled on a GPU, in the interpreter on a CPU."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FunctionType
from typing import Any, Final

import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

_LANGUAGE: Final = (tl, tl.core, tl.math, tl.standard)

# The interpreter replaces parts of triton.language while it runs.
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
    """Have Triton's own functions in Triton, such as ``tl.zeros``, interpreted too."""
    with _interpreter:
        before = knobs.runtime.interpret
        knobs.runtime.interpret = True
        for module, name, kernel in _written_in_triton():
            setattr(module, name, interpreted(kernel))
        try:
            yield
        finally:
            knobs.runtime.interpret = before
            for module, name, kernel in _written_in_triton():
                setattr(module, name, kernel)


@cache
def _written_in_triton() -> list[tuple[Any, str, Any]]:
    return [
        (module, name, value)
        for module in _LANGUAGE
        for name, value in vars(module).items()
        if isinstance(value, JITFunction)
    ]


def blocks(length: int, block: int) -> int:
    """Return how many blocks cover ``length``."""
    return -(-length // block)
