"""One training step on several processes: who does which part, and how the parts come together.

Under torchrun every process trains on its share of every batch. Gradients are averaged by
`DistributedDataParallel`; batch norm takes its statistics over all shares, so that the number of
processes is a matter of speed alone.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from store.errors import Unavailable


@dataclass(frozen=True)
class Share:
    """Which of ``world`` equal processes this one is: ``rank`` in 0..world - 1."""

    rank: int = 0
    world: int = 1

    @classmethod
    def of_this_process(cls) -> "Share":
        """Return this process's share; the whole where no process group was made."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()


def this_device(choice: str = "auto") -> torch.device:
    """Return what this process computes on: the ``cpu``, or ``cuda``, the GPU that belongs to it.

    ``auto`` is the GPU, where there is one.

    Raises:
        Unavailable: ``cuda`` is asked for, and there is no GPU.
    """
    there_is_a_gpu = choice != "cpu" and torch.cuda.is_available()
    if there_is_a_gpu:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if choice == "cuda":
        raise Unavailable(
            "This worker is to compute on an NVIDIA GPU, and there is none that torch can use.",
            remedy="Ask the operator to set BITPRESS_DEVICE to auto, or to install the driver and "
            "a torch that is built for CUDA.",
        )
    return torch.device("cpu")


def check_devices(processes: int, device: torch.device) -> None:
    """Check that each of ``processes`` has a GPU of its own, where ``device`` is one.

    Raises:
        Unavailable: there are fewer GPUs than processes.
    """
    if device.type == "cuda" and processes > (gpus := torch.cuda.device_count()):
        raise Unavailable(
            f"This worker is to train with {processes} processes, one for each GPU, and has "
            f"{gpus} {'GPU' if gpus == 1 else 'GPUs'}.",
            remedy=f"Ask the operator to set BITPRESS_TRAINING_PROCESSES to at most {gpus}.",
        )


def sum_over_processes(values: Tensor, share: Share) -> Tensor:
    """Return the sum of every process's ``values``; no gradient."""
    if share.world > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def distributed(network: nn.Module, share: Share) -> nn.Module:
    """Return what is to be called in place of ``network`` so that gradients are averaged.

    Made anew for every epoch, as it may take no history from one to the next.
    """
    trainable = any(parameter.requires_grad for parameter in network.parameters())
    if share.world == 1 or not trainable:
        return network
    on_gpu = next(network.parameters()).device.type == "cuda"
    devices = [torch.cuda.current_device()] if on_gpu else None
    return DistributedDataParallel(network, device_ids=devices)


def synchronized(network: nn.Module, share: Share, device: torch.device) -> nn.Module:
    """Return ``network`` with batch norms that take their statistics over all processes."""
    if share.world == 1:
        return network
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return converted
    for name, module in list(network.named_modules()):
        if isinstance(module, _BatchNorm) and name:
            parent = network.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], SharedBatchNorm(module))
    return network


class SharedBatchNorm(_BatchNorm):
    """Batch norm over the shares of all processes, where there is no `nn.SyncBatchNorm`: on CPUs.

    Input ``(n, C, ...)`` of any n, equal on all processes. Takes over parameters and statistics.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected a batch of maps, not {input.ndim} dimensions")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; by the stored statistics in evaluation mode."""
        if not self.training:
            result: Tensor = super().forward(input)
            return result
        x = input.float()
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = _sum(x.sum(dim=axes)) / count
        # The deviations in a second pass: the difference of two large sums would lose them.
        centred = x - mean.reshape(shape)
        variance = _sum(centred.square().sum(dim=axes)) / count
        self._follow(mean.detach(), variance.detach() * (count / max(count - 1, 1)))
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        result = centred * scale.reshape(shape)
        if self.affine:
            result = result + self.bias.reshape(shape)
        return result.to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        part = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, part)
        self.running_var.lerp_(variance, part)


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes; so is the gradient, as every process's loss depends on it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _sum(values: Tensor) -> Tensor:
    result: Tensor = _SumOverProcesses.apply(values)  # type: ignore[no-untyped-call]
    return result
