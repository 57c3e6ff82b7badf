"""Compiles what would be launched on a GPU, where there is none."""

import inspect
import re
import subprocess

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_POINTERS = {
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int8: "*i8",
    torch.int32: "*i32",
}


class Launches(list):
    """Stands in for `models.kernels.triton.launching.launch`, and remembers what it was given."""

    def __call__(self, kernel, grid, *arguments, warps=4, stages=3, **constants):
        self.append((kernel, arguments, constants, warps, stages))


def compile_launch(launch, capability):
    """Return the PTX of a remembered launch for that compute capability, 80 or 90."""
    kernel, arguments, constants, warps, stages = launch
    named = inspect.signature(kernel.fn).bind(*arguments, **constants).arguments
    plain = {parameter.name for parameter in kernel.params if parameter.do_not_specialize}
    signature, known, attributes = {}, {}, {}
    for index, (name, value) in enumerate(named.items()):
        whole = type(value) is int and name not in plain
        if name in constants or value is None or (whole and value == 1):
            signature[name], known[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = _POINTERS[value.dtype]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, torch.Tensor) or (whole and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    attributes = {
        key: value for key, value in attributes.items() if kernel.arg_names[key[0]] not in known
    }
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=known, attrs=attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False},
    )
    return compiled.asm["ptx"]


def spilled_bytes(ptx, capability, folder):
    """Return how many bytes of registers the assembler had to keep in memory."""
    source = folder / "kernel.ptx"
    source.write_text(ptx)
    target = {80: "sm_80", 90: "sm_90a"}[capability]
    command = [knobs.nvidia.ptxas.path, "-v", f"--gpu-name={target}", source, "-o", "/dev/null"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", said)
    assert spills, said
    return sum(map(int, spills))
