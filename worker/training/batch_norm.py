"""Batch norm while training: by the batch's statistics, the calibrated or newly estimated ones."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms of ``network`` that keep statistics."""
    return [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]


def freeze_statistics(network: nn.Module) -> None:
    """Let every batch norm normalise by its stored statistics, in a network in training mode."""
    for norm in batch_norms(network):
        norm.eval()


def reestimate(network: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Replace the statistics of every batch norm by the mean of those of the batches ``inputs``.

    Each batch (n, C, H, W) is normalised by its own statistics on the way, as in training. The
    network is left in evaluation mode.
    """
    norms = batch_norms(network)
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    with torch.no_grad():
        for batch in inputs:
            network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
