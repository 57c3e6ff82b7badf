"""The quadratic statistics of one layer: all that a binarization method needs of the data.

A layer with weights ``W`` (S, N), fed ``X`` (S, M) in the full-precision network and ``Xt`` (S, M)
in the network binarized so far, has the target responses ``T = X^T W`` (M, N). The error of a
filter coded as ``a b`` is (BWNH, Hu, Wang and Cheng, AAAI 2018, Eq. 13)

    ||t - a Xt^T b||^2  =  e - 2 a b^T p + a^2 b^T G b

with ``G = Xt Xt^T`` (S, S), ``P = Xt T`` (S, N) and ``e = ||t||^2``, so the samples themselves can
be forgotten: they are streamed, and only the sums are kept (`worker.accumulation`). Where a layer
sees fewer samples than it has inputs (linear layers see one per image), the samples are smaller
than ``G`` and are kept. All sums are divided by the number of samples.

Three changes of the loss are changes of these sums alone:

*   A free offset per filter, ``||t - a Xt^T b - c||^2``, is best at ``c = mean(t) - a b^T m``, m
    the mean of the inputs. That takes the means out: ``G - m m^T``, ``P - m mean(t)^T`` and
    ``e - mean(t)^2``.
*   A ridge, ``+ r ||v - a b||^2``, adds ``r I`` to G, ``r v`` to P and ``r ||v||^2`` to e.
*   Corrected targets ``Xt^T v`` take the place of ``t``, where v, the real-valued weights of least
    ``||t - Xt^T v||^2 + r ||w - v||^2``, is ``(G + r I)^-1 (P + r w)``: P becomes ``G v``, e
    ``v^T G v``. What no weights could do with this input is no longer asked for.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


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

    @property
    def input_mean(self) -> Tensor:
        """``m``, the mean of the inputs, shape (S,)."""

    @property
    def target_mean(self) -> Tensor:
        """The mean of the targets, shape (N,)."""

    def gram_block(self, block: slice) -> Tensor:
        """Return ``G[block, block]``."""

    def gram_at(self, rows: Tensor) -> Tensor:
        """Return ``G[r, r]``, (n, K, K), for the rows r in each column of ``rows`` (K, n)."""

    def diagonal(self) -> Tensor:
        """Return the diagonal of ``G``, shape (S,)."""

    def mean_diagonal(self) -> float:
        """Return the mean of the diagonal of ``G``: the scale that a ridge is measured against."""

    def products(self, codes: Tensor) -> RunningProducts:
        """Start following ``G B`` for ``codes`` (S, n), which the caller changes in place."""

    def with_ridge(self, weight: float, target: Tensor) -> "LayerStatistics":
        """Return the statistics of the loss plus ``weight * ||target - a b||^2``, target (S, N)."""

    def centred(self) -> "LayerStatistics":
        """Return the statistics of the loss with the best offset per filter."""

    def real_weights(self, ridge: float, target: Tensor) -> Tensor:
        """Return v (S, N) of least ``||t - Xt^T v||^2 + ridge * ||target - v||^2``, ridge > 0."""

    def with_targets_of(self, weight: Tensor) -> "LayerStatistics":
        """Return the statistics with ``Xt^T weight``, weight (S, N), as targets."""

    def with_projection(self, projection: Tensor, energy: Tensor) -> "LayerStatistics":
        """Return these with another ``P`` (S, N) and ``e`` (N,)."""


@dataclass(frozen=True)
class GramStatistics:
    """Statistics that keep ``G`` itself: for layers with at least as many samples as inputs."""

    gram: Tensor
    projection: Tensor
    energy: Tensor
    input_mean: Tensor
    target_mean: Tensor

    def gram_block(self, block: slice) -> Tensor:
        return self.gram[block, block]

    def gram_at(self, rows: Tensor) -> Tensor:
        return self.gram[rows.T[:, :, None], rows.T[:, None, :]]

    def diagonal(self) -> Tensor:
        return self.gram.diagonal()

    def mean_diagonal(self) -> float:
        return float(self.gram.diagonal().mean())

    def products(self, codes: Tensor) -> RunningProducts:
        return _GramProducts(self.gram, codes)

    def with_ridge(self, weight: float, target: Tensor) -> "GramStatistics":
        gram = self.gram.clone()
        gram.diagonal().add_(weight)
        ridged = self.with_projection(
            self.projection + weight * target,
            self.energy + weight * target.square().sum(dim=0),
        )
        return replace(ridged, gram=gram)

    def centred(self) -> "GramStatistics":
        mean, target = self.input_mean, self.target_mean
        return GramStatistics(
            torch.addr(self.gram, mean, mean, alpha=-1),
            torch.addr(self.projection, mean, target, alpha=-1),
            (self.energy - target.square()).clamp_(min=0),
            torch.zeros_like(mean),
            torch.zeros_like(target),
        )

    def real_weights(self, ridge: float, target: Tensor) -> Tensor:
        system = self.gram.double()
        system.diagonal().add_(ridge)
        right = self.projection.double() + ridge * target.double()
        return torch.cholesky_solve(right, torch.linalg.cholesky(system)).float()

    def with_targets_of(self, weight: Tensor) -> "GramStatistics":
        projection = self.gram @ weight
        return self.with_projection(projection, (weight * projection).sum(dim=0).clamp_(min=0))

    def with_projection(self, projection: Tensor, energy: Tensor) -> "GramStatistics":
        return replace(self, projection=projection, energy=energy)


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
    input_mean: Tensor
    target_mean: Tensor
    ridge: float = 0.0

    def gram_block(self, block: slice) -> Tensor:
        columns = self.samples[:, block]
        gram = columns.T @ columns
        gram.diagonal().add_(self.ridge)
        return gram

    def gram_at(self, rows: Tensor) -> Tensor:
        blocks = []
        for chosen in rows.T:
            columns = self.samples[:, chosen]
            blocks.append(columns.T @ columns)
            blocks[-1].diagonal().add_(self.ridge)
        return torch.stack(blocks)

    def diagonal(self) -> Tensor:
        return self.samples.square().sum(dim=0) + self.ridge

    def mean_diagonal(self) -> float:
        return float(self.diagonal().mean())

    def products(self, codes: Tensor) -> RunningProducts:
        return _SampleProducts(self, codes, self.samples @ codes)

    def with_ridge(self, weight: float, target: Tensor) -> "SampleStatistics":
        ridged = self.with_projection(
            self.projection + weight * target,
            self.energy + weight * target.square().sum(dim=0),
        )
        return replace(ridged, ridge=self.ridge + weight)

    def centred(self) -> "SampleStatistics":
        mean, target = self.input_mean, self.target_mean
        return replace(
            self,
            samples=self.samples - mean / len(self.samples) ** 0.5,
            projection=torch.addr(self.projection, mean, target, alpha=-1),
            energy=(self.energy - target.square()).clamp_(min=0),
            input_mean=torch.zeros_like(mean),
            target_mean=torch.zeros_like(target),
        )

    def real_weights(self, ridge: float, target: Tensor) -> Tensor:
        """Solve in the space of the samples (Woodbury), which is the smaller one."""
        samples, total = self.samples.double(), ridge + self.ridge
        right = self.projection.double() + ridge * target.double()
        system = samples @ samples.T
        system.diagonal().add_(total)
        inner = torch.cholesky_solve(samples @ right, torch.linalg.cholesky(system))
        return ((right - samples.T @ inner) / total).float()

    def with_targets_of(self, weight: Tensor) -> "SampleStatistics":
        projection = self.samples.T @ (self.samples @ weight) + self.ridge * weight
        return self.with_projection(projection, (weight * projection).sum(dim=0).clamp_(min=0))

    def with_projection(self, projection: Tensor, energy: Tensor) -> "SampleStatistics":
        return replace(self, projection=projection, energy=energy)


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
