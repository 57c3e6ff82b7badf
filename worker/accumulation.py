"""Summing a layer's statistics over its samples, which come in pieces and are not kept.

Products are float32 over a few thousand samples each, their sums float64. Of ``G``, which is
symmetric, only the half from the diagonal on is computed.
"""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from store.errors import InvalidSpec
from worker.finite import not_finite
from worker.statistics import GramStatistics, LayerStatistics, SampleStatistics

# One fp32 product covers at least this many samples before it is added in fp64: enough to keep the
# additions (S x S doubles each) cheap beside the products.
SAMPLES_PER_PRODUCT = 8192

# Rows of G that are computed at a time, at least: only the strip from the diagonal on is needed.
GRAM_STRIP = 288


def accumulate(
    chunks: Iterable[tuple[Tensor, Tensor]],
    inputs: int,
    filters: int,
    samples: int,
    device: torch.device | None = None,
) -> LayerStatistics:
    """Sum the statistics over ``chunks`` of inputs ``Xt^T`` (m, S) and targets ``T`` (m, N).

    Both are float32, on ``device``, where the sums are too; by default the CPU. Products are
    float32, sums float64. ``samples`` is the number of samples that will come; it decides whether
    ``G`` or the samples are kept.

    Raises:
        InvalidSpec: there is no sample at all.
        InvalidCheckpoint: the sums are not finite, or too large for float32.
    """
    if samples == 0:
        raise InvalidSpec(
            "There is no calibration sample.",
            field="spec.calibration_images",
            remedy="Use a dataset with training images.",
        )
    if samples < inputs:
        return _keep_samples(chunks)
    shapes = ((inputs, inputs), (inputs, filters), (filters,), (inputs,), (filters,))
    sums = [torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes]
    gram, projection, energy, input_sum, target_sum = sums
    seen = 0
    for patches, targets in _regroup(chunks, SAMPLES_PER_PRODUCT):
        _add_gram(gram, patches)
        projection += patches.T @ targets
        energy += targets.double().square().sum(dim=0)
        input_sum += patches.sum(dim=0, dtype=torch.float64)
        target_sum += targets.sum(dim=0, dtype=torch.float64)
        seen += len(patches)
    _mirror_gram(gram)
    return _finite(GramStatistics(*(total.div_(seen).float() for total in sums)))


def _add_gram(gram: Tensor, patches: Tensor) -> None:
    """Add the blocks of ``patches^T patches`` (S, S) on and right of the diagonal to ``gram``."""
    for block in _strips(len(gram)):
        gram[block, block.start :] += patches[:, block].T @ patches[:, block.start :]


def _mirror_gram(gram: Tensor) -> None:
    """Fill in what `_add_gram` left out, since ``gram`` is symmetric."""
    for block in _strips(len(gram)):
        gram[block.stop :, block] = gram[block, block.stop :].T


def _strips(inputs: int) -> Iterator[slice]:
    """Divide the rows of G. More strips save more of the product, smaller ones are slower."""
    width = max(GRAM_STRIP, -(-inputs // 8))
    for start in range(0, inputs, width):
        yield slice(start, min(start + width, inputs))


def _finite(statistics: LayerStatistics) -> LayerStatistics:
    sums = (statistics.projection.sum(), statistics.energy.sum())
    if all(map(math.isfinite, (statistics.mean_diagonal(), *map(float, sums)))):
        return statistics
    raise not_finite("The network's activations")


def _keep_samples(chunks: Iterable[tuple[Tensor, Tensor]]) -> LayerStatistics:
    patches, targets = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    count = len(patches)
    projection = (patches.T @ targets).div_(count)
    energy = targets.double().square().mean(dim=0).float()
    input_mean, target_mean = (
        rows.mean(dim=0, dtype=torch.float64).float() for rows in (patches, targets)
    )
    samples = patches.div_(count**0.5)
    return _finite(SampleStatistics(samples, projection, energy, input_mean, target_mean))


def _regroup(chunks: Iterable[tuple[Tensor, Tensor]], size: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Join small chunks until at least ``size`` samples are together."""
    waiting: list[tuple[Tensor, Tensor]] = []
    count = 0
    for chunk in chunks:
        waiting.append(chunk)
        count += len(chunk[0])
        if count >= size:
            yield _join(waiting)
            waiting, count = [], 0
    if waiting:
        yield _join(waiting)


def _join(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(parts) == 1:
        return parts[0]
    patches, targets = zip(*parts, strict=True)
    return torch.cat(patches), torch.cat(targets)
