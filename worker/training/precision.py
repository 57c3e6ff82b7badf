"""In which numbers products are computed while training."""

from contextlib import AbstractContextManager

import torch

from worker.training.recipe import Precision

# Instructions that multiply bfloat16; without one of them it is slower than float32.
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}


def uses_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Return whether products are computed in bfloat16 with float32 sums.

    ``auto`` is bfloat16 where ``device`` has instructions for it.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return not _BFLOAT16_FLAGS.isdisjoint(_cpu_flags())


def product_precision(device: torch.device, bfloat16: bool) -> AbstractContextManager[object]:
    """Return the context in which forward passes run."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                # "Features" on ARM, where the flag is called bf16 and torch gains nothing by it.
                if line.startswith("flags"):
                    return set(line.partition(":")[2].split())
    except OSError:
        pass
    return set()
