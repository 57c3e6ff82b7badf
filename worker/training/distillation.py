"""What a full-precision teacher has to say: its logits, and the results of its blocks."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from worker.training.processes import Share, sum_over_processes

# Where a plain network's blocks end.
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
# Below this square a block is taken as silent: an error has nothing to be relative to.
_SILENT = 1e-12


def logit_distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``T^2 KL(softmax(teacher / T) || softmax(student / T))``, averaged over images.

    Logits are float32 ``(n, K)``. Hinton, Vinyals and Dean, arXiv:1503.02531, section 2; the
    factor T^2 keeps the gradient's size when the temperature changes.
    """
    found = functional.log_softmax(student / temperature, dim=1)
    wanted = functional.log_softmax(teacher / temperature, dim=1)
    distance = functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
    return distance * temperature**2


def feature_distance(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], share: Share
) -> Tensor:
    """Return ``mean over blocks of ||s - t||^2 / ||t||^2``, norms over all images of the batch.

    Of a batch that several processes share, each returns its part of the numerators, times their
    number: the mean over the processes is that of the whole batch.
    """
    errors = torch.stack([_square(student[name] - wanted) for name, wanted in teacher.items()])
    sizes = torch.stack([_square(wanted) for wanted in teacher.values()])
    sizes = sum_over_processes(sizes, share) / share.world
    return (errors / sizes.clamp(min=_SILENT)).mean()


def _square(values: Tensor) -> Tensor:
    """Return the sum of squares, in float32 whatever the values are in, without a copy of them."""
    norm: Tensor = torch.linalg.vector_norm(values, dtype=torch.float32)
    return norm.square()


def block_names(network: nn.Module) -> list[str]:
    """Return the modules of ``network`` whose results are the results of its blocks.

    In a residual network these are the residual blocks: what has layers for children and is neither
    a mere sequence nor the whole. In a plain one they are the pools, and every sequence before the
    last child of the network that does not end with a pool anyway.
    """
    composites = [name for name, module in network.named_modules() if name and _is_block(module)]
    if composites:
        return composites
    pools = [name for name, module in network.named_modules() if isinstance(module, _POOLS)]
    stages = [
        name
        for name, module in list(network.named_children())[:-1]
        if isinstance(module, nn.Sequential) and not isinstance(list(module)[-1], _POOLS)
    ]
    return pools + stages


def _is_block(module: nn.Module) -> bool:
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return False
    return any(isinstance(child, nn.Conv2d | nn.Linear) for child in module.children())


class BlockResults:
    """Collects what some modules return during a forward pass."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        """Listen to the modules ``names`` of ``network`` from now on."""
        self._found: dict[str, Tensor] = {}
        for name in names:
            network.get_submodule(name).register_forward_hook(self._listener(name))

    def take(self) -> dict[str, Tensor]:
        """Return the results of the last forward pass by name, and forget them."""
        found, self._found = self._found, {}
        return found

    def _listener(self, name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def listen(_module: nn.Module, _inputs: object, result: Tensor) -> None:
            self._found[name] = result

        return listen
