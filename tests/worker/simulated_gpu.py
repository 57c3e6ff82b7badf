"""A GPU for where there is none: it refuses what a GPU would, and computes what a CPU does.

Its tensors say that they are on a GPU and are kept by the CPU. They meet no tensor of the CPU's, so
that code which forgets to bring one along fails; and what is asked of them, for which a CPU would
have to wait, is noted.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from worker import descent

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)

# What may read tensors of both: copies, and places to look at.
_BOTH = {"aten::_to_copy", "aten::copy_", "aten::index", "aten::index_put_"}
# What makes a CPU wait until a GPU knows.
_ANSWERS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal"}


class OnGpu(Tensor):
    """A tensor that says it is on the GPU; torch's own code takes it for one without content."""

    content: Tensor

    @staticmethod
    def __new__(cls, content: Tensor) -> "OnGpu":
        made: OnGpu = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            content.shape,
            strides=content.stride(),
            storage_offset=content.storage_offset(),
            dtype=content.dtype,
            device="meta",
        )
        made.content = content
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    def tolist(self) -> list[Any]:
        return self.to("cpu").tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
        return _computed(function, arguments, keywords or {}, [])


class SimulatedGpu(TorchDispatchMode):
    """While it is entered there is a GPU; ``waits`` has what was asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def away(self) -> AbstractContextManager[object]:
        """Return a context in which there is no GPU, and no tensor of it may be used."""
        return _disable_current_modes()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
        return _computed(function, arguments, keywords or {}, self.waits)


def _computed(function: Any, arguments: Any, keywords: dict[str, Any], waits: list[str]) -> Any:
    name = function._schema.name
    tensors = [one for one in tree_leaves((arguments, keywords)) if isinstance(one, Tensor)]
    there = [one for one in tensors if isinstance(one, OnGpu)]
    if there:
        # torch makes such a tensor of a list of places, which is lost here.
        assert not any(type(one) is Tensor and one.is_meta for one in tensors), name
    if there and name not in _BOTH:
        strangers = [one for one in tensors if not isinstance(one, OnGpu) and one.ndim]
        assert not strangers, f"{name} meets a tensor of the CPU"
    asked = keywords.get("device")
    kind = None if asked is None else torch.device(asked).type
    # torch makes a number that meets a tensor of the GPU a tensor there.
    is_number = name == "aten::scalar_tensor" and kind == "meta"
    on_gpu = kind == "cuda" or is_number or (bool(there) and kind != "cpu")
    if name == "aten::copy_":
        on_gpu = isinstance(arguments[0], OnGpu)
    if name in _ANSWERS or not on_gpu:
        waits.extend([name] if there else [])
    arguments, keywords = tree_map(_content, (arguments, keywords))
    if on_gpu and asked is not None:
        keywords["device"] = CPU
    if name == "bitpress::turn_bits":
        # Of the kernel it is shown elsewhere that it decides like this.
        made = descent._decide_in_place(*arguments[:7])
    else:
        made = function(*arguments, **keywords)
    if not on_gpu:
        return made
    known = {id(one.content): one for one in there}  # what is changed in place stays what it was

    def brought(value: Any) -> Any:
        return known[id(value)] if id(value) in known else OnGpu(value)

    with torch.inference_mode(False):
        return tree_map(lambda one: brought(one) if isinstance(one, Tensor) else one, made)


def _content(value: Any) -> Any:
    return value.content if isinstance(value, OnGpu) else value
