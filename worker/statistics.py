"""The quadratic statistics of one layer: all that a binarization method needs of the data.

A layer with weights ``W`` (S, N), fed ``X`` (S, M) in the full-precision network and ``Xt`` (S, M)
in the network binarized so far, has the target responses ``T = X^T W`` (M, N). The error of a
filter coded as ``a b`` is (BWNH, Hu, Wang and Cheng, AAAI 2018, Eq. 13)

    ||t - a Xt^T b||^2  =  e - 2 a b^T p + a^2 b^T G b

with ``G = Xt Xt^T`` (S, S), ``P = Xt T`` (S, N) and ``e = ||t||^2``, so the samples themselves can
be forgotten: they are streamed, and only the sums are kept. Where a layer sees fewer samples than
it has inputs (linear layers see one per image), the samples are smaller than ``G`` and are kept.
All sums are divided by the number of samples.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from store.errors import InvalidCheckpoint, InvalidSpec

# One fp32 product covers at least this many samples before it is added in fp64: enough to keep the
# additions (S x S doubles each) cheap beside the products.
SAMPLES_PER_PRODUCT = 8192


class RunningProducts(Protocol):
    """``G B`` for codes ``B`` (S, n) that change block by block."""

    def rows(self, block: slice) -> Tensor:
        """Return ``(G B)[block]``, shape (|block|, n), for the present codes."""

    def update(self, block: slice, change: Tensor) -> None:
        """Take note that ``B[block] += change``; the caller has already changed ``B`` itself."""


class LayerStatistics(Protocol):
    """Sums over a layer's samples, as the module's text defines them. Everything is float32."""

    @property
    def projection(self) -> Tensor:
        """``P``, shape (S, N)."""

    @property
    def energy(self) -> Tensor:
        """``e``, shape (N,)."""

    def gram_block(self, block: slice) -> Tensor:
        """Return ``G[block, block]``."""

    def mean_diagonal(self) -> float:
        """Return the mean of the diagonal of ``G``: the scale that a ridge is measured against."""

    def products(self, codes: Tensor) -> RunningProducts:
        """Start following ``G B`` for ``codes`` (S, n), which the caller changes in place."""

    def with_ridge(self, weight: float, target: Tensor) -> "LayerStatistics":
        """Return the statistics of the loss plus ``weight * ||target - a b||^2``, target (S, N)."""


@dataclass(frozen=True)
class GramStatistics:
    """Statistics that keep ``G`` itself: for layers with at least as many samples as inputs."""

    gram: Tensor
    projection: Tensor
    energy: Tensor

    def gram_block(self, block: slice) -> Tensor:
        return self.gram[block, block]

    def mean_diagonal(self) -> float:
        return float(self.gram.diagonal().mean())

    def products(self, codes: Tensor) -> RunningProducts:
        return _GramProducts(self.gram, codes)

    def with_ridge(self, weight: float, target: Tensor) -> "GramStatistics":
        gram = self.gram.clone()
        gram.diagonal().add_(weight)
        return GramStatistics(
            gram,
            self.projection + weight * target,
            self.energy + weight * target.square().sum(dim=0),
        )


@dataclass(frozen=True)
class _GramProducts:
    gram: Tensor
    codes: Tensor

    def rows(self, block: slice) -> Tensor:
        return self.gram[block] @ self.codes

    def update(self, block: slice, change: Tensor) -> None:
        """The next `rows` reads the codes anew, so nothing drifts and nothing is to be done."""


@dataclass(frozen=True)
class SampleStatistics:
    """Statistics that keep the samples, shape (M, S) times ``1/sqrt(M)``, in place of ``G``."""

    samples: Tensor
    projection: Tensor
    energy: Tensor
    ridge: float = 0.0

    def gram_block(self, block: slice) -> Tensor:
        columns = self.samples[:, block]
        gram = columns.T @ columns
        gram.diagonal().add_(self.ridge)
        return gram

    def mean_diagonal(self) -> float:
        return float(self.samples.square().sum(dim=0).mean()) + self.ridge

    def products(self, codes: Tensor) -> RunningProducts:
        return _SampleProducts(self, codes, self.samples @ codes)

    def with_ridge(self, weight: float, target: Tensor) -> "SampleStatistics":
        return SampleStatistics(
            self.samples,
            self.projection + weight * target,
            self.energy + weight * target.square().sum(dim=0),
            self.ridge + weight,
        )


@dataclass(frozen=True)
class _SampleProducts:
    statistics: SampleStatistics
    codes: Tensor
    responses: Tensor

    def rows(self, block: slice) -> Tensor:
        products = self.statistics.samples[:, block].T @ self.responses
        return products.add_(self.codes[block], alpha=self.statistics.ridge)

    def update(self, block: slice, change: Tensor) -> None:
        self.responses.addmm_(self.statistics.samples[:, block], change)


def accumulate(
    chunks: Iterable[tuple[Tensor, Tensor]], inputs: int, filters: int, samples: int
) -> LayerStatistics:
    """Sum the statistics over ``chunks`` of inputs ``Xt^T`` (m, S) and targets ``T`` (m, N).

    Both are float32. Products are float32, sums float64. ``samples`` is the number of samples that
    will come; it decides whether ``G`` or the samples are kept.

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
    gram = torch.zeros(inputs, inputs, dtype=torch.float64)
    projection = torch.zeros(inputs, filters, dtype=torch.float64)
    energy = torch.zeros(filters, dtype=torch.float64)
    seen = 0
    for patches, targets in _regroup(chunks, SAMPLES_PER_PRODUCT):
        gram += patches.T @ patches
        projection += patches.T @ targets
        energy += targets.double().square().sum(dim=0)
        seen += len(patches)
    return _finite(
        GramStatistics(
            gram.div_(seen).float(), projection.div_(seen).float(), energy.div_(seen).float()
        )
    )


def _finite(statistics: LayerStatistics) -> LayerStatistics:
    sums = (statistics.projection.sum(), statistics.energy.sum())
    if all(map(math.isfinite, (statistics.mean_diagonal(), *map(float, sums)))):
        return statistics
    raise InvalidCheckpoint(
        "The network's activations on the calibration images are too large or not finite.",
        field="spec.input",
        remedy="Give the mean, std and value range that the network was trained with.",
    )


def _keep_samples(chunks: Iterable[tuple[Tensor, Tensor]]) -> LayerStatistics:
    patches, targets = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    count = len(patches)
    projection = (patches.T @ targets).div_(count)
    energy = targets.double().square().sum(dim=0).div_(count).float()
    return _finite(SampleStatistics(patches.div_(count**0.5), projection, energy))


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
