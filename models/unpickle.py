"""Child process that reads a ``torch.save`` file and hands its tensors back as safetensors.

``python -m models.unpickle CHECKPOINT OUTPUT_FD PARENT_PID CPU_SECONDS MARGIN_BYTES`` loads
CHECKPOINT with ``torch.load(weights_only=True)`` only, writes its tensors as float32 to the open
file OUTPUT_FD and prints one line of JSON: ``{}``, or the ``detail`` and ``remedy`` of a refusal,
or ``full`` where there was no room for the result, or ``memory`` where the limit was too low.

It runs apart from its caller because a pickle is a program: even the restricted loader makes
whatever objects the file asks for. Here that can exhaust no more than the limits below, and a crash
ends this process alone. The memory limit is what the process occupies once torch is imported, some
times the file's size, and a margin.
"""

import ctypes
import errno
import json
import os
import re
import resource
import signal
import sys
from typing import TYPE_CHECKING, Any

from models.checkpoint_container import SAVE_SAFELY, short

if TYPE_CHECKING:
    from torch import Tensor

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")

_COPIES_IN_MEMORY = 6
_MAX_WRAPPER_DEPTH = 3
_PR_SET_PDEATHSIG = 1


class Refusal(Exception):
    """The file is not a checkpoint that can be used; carries what to tell the user."""

    def __init__(self, detail: str, remedy: str = SAVE_SAFELY) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process as soon as the thread that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent_pid:  # it ended before the call
        raise SystemExit(1)


def limit_resources(file_bytes: int, cpu_seconds: int, margin_bytes: int) -> None:
    """Bound address space, processor time and written bytes of this process, once and for all."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        occupied = int(statm.read().split()[0]) * resource.getpagesize()
    limits = {
        resource.RLIMIT_AS: occupied + _COPIES_IN_MEMORY * file_bytes + margin_bytes,
        # Tensors of one byte a value become float32, and a tensor may be tied to a second name.
        resource.RLIMIT_FSIZE: 8 * file_bytes + 2**24,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_CORE: 0,
    }
    for kind, bound in limits.items():
        hard = resource.getrlimit(kind)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (bound, bound))


def read_state_dict(path: str) -> "dict[str, Tensor]":
    """Return the tensors of the ``torch.save`` file at ``path``, out of their wrapper if any.

    Raises:
        Refusal: the file asks for code, is damaged, or holds something else than named tensors.
    """
    import pickle

    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused_pickle(str(error)) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or re.search("alloc", str(error)):
            raise
        raise Refusal("The file is damaged: torch cannot read it.") from None
    # What a broken pickle makes Python's own code raise is open-ended.
    except Exception:
        raise Refusal("The file is damaged: torch cannot read it.") from None
    return _check_tensors(_unwrap(content), os.stat(path).st_size)


def _refused_pickle(message: str) -> Refusal:
    asked = re.search(r"GLOBAL ([\w.]{1,100})", message)
    if asked is None:
        return Refusal("The pickle holds something else than tensors, or is damaged.")
    return Refusal(
        f"The pickle asks for {asked[1]}, which is not a tensor. It was not loaded and nothing "
        "in it was run."
    )


def _unwrap(content: Any) -> Any:
    for _ in range(_MAX_WRAPPER_DEPTH):
        if not isinstance(content, dict):
            break
        inner = [content[name] for name in WRAPPERS if isinstance(content.get(name), dict)]
        if not inner:
            break
        content = inner[0]
    return content


def _check_tensors(state: Any, file_bytes: int) -> "dict[str, Tensor]":
    import torch

    if not isinstance(state, dict) or not state:
        raise Refusal("The file holds no state dict: a dictionary of named tensors was expected.")
    weights = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    counts = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    values = 0
    for key, tensor in state.items():
        if not isinstance(key, str):
            raise Refusal(f"The state dict names a tensor by a {type(key).__name__}, not by text.")
        if key == "__metadata__":
            raise Refusal("No tensor can be called '__metadata__'.")
        if not isinstance(tensor, torch.Tensor):
            raise Refusal(f"Entry {short(key)} of the state dict is not a tensor.")
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.dtype not in weights + counts:
            raise Refusal(
                f"Tensor {short(key)} is sparse, quantized or of type "
                f"{str(tensor.dtype).removeprefix('torch.')}.",
                "Save the weights as dense float32, float16 or bfloat16.",
            )
        values += tensor.numel()
    # A value takes a byte or more, and tied weights have two names; what exceeds this is a small
    # storage that claims to be a huge tensor.
    if values > 2 * file_bytes:
        raise Refusal(f"The tensors declare {values} values in a file of {file_bytes} bytes.")
    return state


def write_safetensors(state: "dict[str, Tensor]", output_fd: int) -> None:
    """Write ``state`` to the open file tensor by tensor: floats as float32, the rest as int64."""
    import torch

    header: dict[str, Any] = {}
    end = 0
    for key, tensor in state.items():
        floating = tensor.dtype.is_floating_point
        begin, end = end, end + tensor.numel() * (4 if floating else 8)
        header[key] = {
            "dtype": "F32" if floating else "I64",
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with os.fdopen(output_fd, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in state.values():
            kind = torch.float32 if tensor.dtype.is_floating_point else torch.int64
            tensor.detach().to(kind).contiguous().numpy().tofile(file)


def main(arguments: list[str]) -> dict[str, str]:
    """Do the work of the module's docstring; return the JSON members to print."""
    path, output_fd, parent_pid, cpu_seconds, margin_bytes = arguments
    die_with_parent(int(parent_pid))
    import numpy  # noqa: F401  (before the limit: it belongs to the size after imports)
    import torch

    torch.set_num_threads(1)
    limit_resources(os.stat(path).st_size, int(cpu_seconds), int(margin_bytes))
    try:
        write_safetensors(read_state_dict(path), int(output_fd))
    except Refusal as refusal:
        return {"detail": refusal.detail, "remedy": refusal.remedy}
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return {"full": "The temporary folder is full."}
    except (MemoryError, RuntimeError):
        return {"memory": "Reading the file takes more memory than its size explains."}
    return {}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1:])) + "\n")
