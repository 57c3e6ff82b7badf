"""Hands damaged artifacts and programs to the CPU engine; run in a process of its own.

Arguments: ``artifacts`` or ``programs``, and a range of seeds. A case ends in an answer or in a
named error; a crash, a hang or anything else ends the process, with the seed as its last words.
"""

import ctypes
import faulthandler
import json
import mmap
import random
import runpy
import sys
from math import prod
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from models import artifact as artifacts
from models.plan import Plan
from models.preprocessing import InputSpec
from models.runtime import native
from models.runtime.arena import place
from models.runtime.compilation import compile_plan
from models.runtime.cpu import CpuRuntime
from models.runtime.flat_program import Kind
from models.runtime.native import KERNEL_SETS
from models.runtime.structures import CSpec, CStep, CValue, c_step, c_value
from store.errors import InvalidArtifact, Unavailable

random_plan = runpy.run_path(str(Path(__file__).with_name("random_plans.py")))["random_plan"]

# What a pointer of a damaged program points to: nobody can tell how long an array is from its
# address, so there is more of it than any program that is accepted here reads. Untouched pages
# cost nothing.
_ENDLESS_BYTES = 1 << 36
_NO_RESERVE = 0x4000  # MAP_NORESERVE, which the module mmap has from Python 3.13 on
_mapped = []
_MOST_WORK = 1 << 26  # multiply-accumulates, bytes: programs that are larger are not run

_EXTREMES = (0, 1, -1, 2, 3, 7, 64, 1 << 16, 1 << 20, 1 << 26, (1 << 31) - 1, -(1 << 31))
_WIDE_EXTREMES = (*_EXTREMES, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1, -(1 << 63))


def damaged_artifacts(seed):
    """One artifact with a few bytes, or a few members of its plan, changed."""
    rng = random.Random(seed)
    if rng.random() < 0.5:
        plan, tensors = random_plan(seed % 200, rounded=seed % 3 > 0, nodes=6)
        plan = changed_plan(plan, rng)
        if sum(prod(spec.shape) for spec in plan.tensors.values()) > _MOST_WORK:
            return False
        tensors = {
            name: tensors[name]
            if name in tensors and tensors[name].shape == spec.shape
            else np.zeros(spec.shape, np.uint8 if spec.dtype == "U8" else np.float32)
            for name, spec in plan.tensors.items()
        }
        return run(SimpleNamespace(plan=plan, tensors=tensors))
    data = bytearray(some_artifact(seed % 200))
    header = int.from_bytes(data[:8], "little") + 8
    in_tensors = rng.random() < 0.5
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(header, len(data)) if in_tensors else rng.randrange(header)
        data[place] = rng.randrange(256)
    if rng.random() < 0.2:
        del data[rng.randrange(len(data)) :]
    return run(artifacts.decode(bytes(data)))


def some_artifact(seed):
    """Return an artifact's bytes; only some plans are for images, with a vector as the result."""
    while True:
        plan, tensors = random_plan(seed, rounded=seed % 3 > 0, nodes=6)
        if plan.input_shape[0] in (1, 3) and len(plan.output_shape) == 1 and tensors:
            break
        seed += 1000
    channels = plan.input_shape[0]
    labels = tuple(map(str, range(plan.output_shape[0])))
    spec = InputSpec(*plan.input_shape, (0.0,) * channels, (1.0,) * channels)
    return artifacts.encode(artifacts.Artifact(plan, tensors, spec, labels, {}, {}))


def changed_plan(plan, rng):
    """Return the plan with some of its members exchanged for others of their kind, or nonsense."""
    data = json.loads(json.dumps(plan.to_json()))
    for _ in range(rng.randint(1, 3)):
        node = rng.choice(data["nodes"])
        key = rng.choice(list(node))
        other = rng.choice(data["nodes"])
        node[key] = rng.choice(
            [
                other.get(key, 1), rng.choice(_WIDE_EXTREMES), [rng.randint(0, 5)] * 2,
                rng.randint(1, 9), rng.choice(plan.nodes).name, "input", None, True, 1e-38, -0.5,
            ]
        )  # fmt: skip
    return Plan.from_json(data)


def run(found):
    if found.plan.macs > _MOST_WORK or found.plan.peak_elements > _MOST_WORK:
        return False
    x = torch.zeros(2, *found.plan.input_shape).normal_()
    kernels = native.library().kernel_sets()
    runtime = CpuRuntime(
        found, threads=2, kernels=kernels[found.plan.macs % len(kernels)],
        choose_kernel=lambda step, source: -1,
    )  # fmt: skip
    answer = runtime.run(x)
    assert answer.shape == (2, *found.plan.output_shape)
    return True


def damaged_program(seed, endless, y):
    """A program with a few members of its values, steps or specification changed."""
    rng = random.Random(seed)
    plan, tensors = random_plan(seed % 200, rounded=seed % 2 > 0, nodes=6)
    program = compile_plan(plan, tensors)
    arena = place(program)
    values = (CValue * len(program.values))(*map(c_value, program.values, arena.offsets))
    steps = (CStep * len(program.steps))(*map(c_step, program.steps))
    for step in steps:
        for name in ("gain", "shift", "slope", "packed_bits", "weight", "base_scale"):
            if getattr(step, name) is not None:
                setattr(step, name, endless)
    spec = CSpec(
        rng.randrange(3), rng.randint(1, 3), rng.choice((1, 2, 5)), arena.bytes,
        len(values), values, len(steps), steps,
    )  # fmt: skip
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        target = rng.choices((rng.choice(steps), rng.choice(values), spec), (6, 3, 1))[0]
        change_member(target, rng, endless)
    # These say how long the lists are: what is behind them cannot be checked.
    spec.value_count = min(spec.value_count, len(values))
    spec.step_count = min(spec.step_count, len(steps))
    spec.threads = min(spec.threads, 8)
    spec.max_images = min(spec.max_images, 1 << 20)
    handle, error = ctypes.c_void_p(), ctypes.create_string_buffer(200)
    functions = native.library().functions
    status = functions.bp_program_create(
        ctypes.byref(spec), ctypes.byref(handle), error, len(error)
    )
    if status != native.Status.OK:
        assert error.value, f"seed {seed}: status {status} without a word"
        assert handle.value is None
        raise InvalidArtifact(error.value.decode())
    try:
        if work(spec) <= _MOST_WORK:
            functions.bp_program_run(handle, endless, rng.randint(1, 3), y)
    finally:
        functions.bp_program_destroy(handle)
    return True


def change_member(target, rng, endless):
    name, kind = rng.choice(target._fields_)
    if kind is ctypes.c_float:
        setattr(target, name, rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf"), 1e-45)))
    elif kind is ctypes.c_void_p:
        setattr(target, name, rng.choice((None, endless)))
    elif kind in (ctypes.c_int32, ctypes.c_int64):
        extremes = _EXTREMES if kind is ctypes.c_int32 else _WIDE_EXTREMES
        near = getattr(target, name) + rng.choice((-64, -1, 1, 64))
        value = rng.choice((rng.choice(extremes), rng.randint(-2, 20), near))
        setattr(target, name, ctypes.c_int64(value).value)
    else:  # the lists themselves
        setattr(target, name, None)


def work(spec):
    """About how many operations the program takes, summed over its products."""
    total = spec.arena_bytes
    for step in spec.steps[: spec.step_count]:
        out = step.out_f32 if step.out_f32 >= 0 else step.out_u8
        if step.kind in (Kind.PRODUCT, Kind.MAX_POOL, Kind.AVG_POOL) and out >= 0:
            value = spec.values[out]
            taps = step.kernel_rows * step.kernel_columns * step.bases
            channels = spec.values[step.in0].channels if step.kind == Kind.PRODUCT else 1
            total += taps * channels * value.channels * value.height * value.width
    return total


def endless_zeros():
    """The address of more zeros than there is memory for."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    memory = mmap.mmap(-1, _ENDLESS_BYTES, flags)
    _mapped.append(memory)
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def main():
    what, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    assert KERNEL_SETS and native.library() is not None
    x, y = endless_zeros(), endless_zeros()
    case = {"artifacts": damaged_artifacts, "programs": lambda seed: damaged_program(seed, x, y)}[
        what
    ]
    counts = {"ran": 0, "refused": 0}
    for seed in range(first, last):
        sys.stderr.write(f"{what}, seed {seed}\n")
        sys.stderr.flush()
        faulthandler.dump_traceback_later(60, exit=True)
        try:
            ran = case(seed)
        except (InvalidArtifact, Unavailable):
            counts["refused"] += 1
        else:
            counts["ran"] += ran
    sys.stdout.write(json.dumps(counts))


if __name__ == "__main__":
    main()
