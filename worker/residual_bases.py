"""Further bases for one layer: every filter as ``a_1 b_1 + a_2 b_2 + ...``.

A basis is solved like the first one, against what the others leave of the targets: with
``r = P - sum over l != k of a_l G b_l`` in the place of P, the loss of basis k alone is the loss of
all. Then all scales of a filter are fitted together, ``a = M^-1 c`` with ``M_kl = b_k^T G b_l`` and
``c_k = b_k^T p``. No step can raise the loss.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.descent import Solution, descend, row_blocks
from worker.statistics import LayerStatistics

# Of a filter's largest b^T G b: below that, two bases of it say the same, and its scales stay.
LEAST_SHARE = 1e-5


@dataclass
class Bases:
    """Codes (K, S, N) float32, their ``G b_k`` of the same shape, and scales (K, N) float64."""

    codes: Tensor
    answers: Tensor
    scales: Tensor

    @classmethod
    def of(cls, statistics: LayerStatistics, first: Solution) -> "Bases":
        """Return the single basis of a solution."""
        answers = _answers(statistics, first.codes)
        return cls(first.codes[None], answers[None], first.scales[None].clone())

    def losses(self, statistics: LayerStatistics) -> Tensor:
        """Return the squared error of every filter (N,), float64."""
        products, correlation = self._quadratic(statistics)
        explained = 2 * (self.scales * correlation).sum(dim=0)
        response = torch.einsum("kn,kln,ln->n", self.scales, products, self.scales)
        return (statistics.energy.double() - explained + response).clamp(min=0)

    def loss(self, statistics: LayerStatistics) -> float:
        """Return the squared error of all filters over the energy of their targets."""
        total = statistics.energy.sum(dtype=torch.float64)
        return float(self.losses(statistics).sum() / total) if total > 0 else 0.0

    def without(self, statistics: LayerStatistics, basis: int | None) -> LayerStatistics:
        """Return the statistics of what the bases but ``basis`` leave to do."""
        wanted = [k for k in range(len(self.codes)) if k != basis]
        kept = torch.tensor(wanted, dtype=torch.int64).to(self.codes.device)
        others = Bases(self.codes[kept], self.answers[kept], self.scales[kept])
        done = torch.einsum("kn,ksn->sn", others.scales.float(), others.answers)
        energy = others.losses(statistics).float()
        return statistics.with_projection(statistics.projection - done, energy)

    def take(self, statistics: LayerStatistics, basis: int | None, solution: Solution) -> None:
        """Put ``solution`` in the place of a basis, or behind the last, and fit all scales."""
        answers = _answers(statistics, solution.codes)
        if basis is None:
            self.codes = torch.cat([self.codes, solution.codes[None]])
            self.answers = torch.cat([self.answers, answers[None]])
            self.scales = torch.cat([self.scales, solution.scales[None]])
        else:
            self.codes[basis], self.answers[basis] = solution.codes, answers
            self.scales[basis] = solution.scales
        self._fit_scales(statistics)

    def _fit_scales(self, statistics: LayerStatistics) -> None:
        products, correlation = self._quadratic(statistics)
        largest = products.diagonal().max(dim=-1).values
        systems = products.permute(2, 0, 1)
        sound = torch.linalg.eigvalsh(systems)[:, 0] > LEAST_SHARE * largest
        sound &= largest > 0
        unit = torch.eye(len(self.codes), dtype=torch.float64, device=systems.device)
        safe = torch.where(sound[:, None, None], systems, unit)
        best = torch.linalg.solve(safe, correlation.T).T
        scales = torch.where(sound, best, self.scales)
        flip = torch.where(scales < 0, -1.0, 1.0).double()
        self.codes *= flip.float()[:, None]
        self.answers *= flip.float()[:, None]
        self.scales = scales * flip

    def _quadratic(self, statistics: LayerStatistics) -> tuple[Tensor, Tensor]:
        """Return ``b_k^T G b_l`` (K, K, N) and ``b_k^T p`` (K, N), float64."""
        codes, projection = self.codes.double(), statistics.projection.double()
        products = torch.einsum("ksn,lsn->kln", codes, self.answers.double())
        return products, torch.einsum("ksn,sn->kn", codes, projection)


def add_basis(
    statistics: LayerStatistics, bases: Bases, weight: Tensor, sweeps: int, *, eliminate: bool
) -> Iterator[tuple[int, float]]:
    """Give ``bases`` one more, started from what they leave of ``weight`` (S, N), in place.

    Then every basis is solved once more against what the others leave. Yields, after every sweep,
    the basis it was over, from 1, and the squared error of all filters over the energy of their
    targets, before their scales are fitted together.
    """
    energy = statistics.energy.sum(dtype=torch.float64)
    left = weight - torch.einsum("kn,ksn->sn", bases.scales.float(), bases.codes)
    codes, scales = torch.where(left >= 0, 1.0, -1.0), left.abs().mean(dim=0)
    for basis in (None, *range(len(bases.codes) + 1)):
        if basis is not None:
            codes, scales = bases.codes[basis].clone(), bases.scales[basis]
        rest = bases.without(statistics, basis)
        solution = Solution.start(rest, codes, scales)
        number = len(bases.codes) + 1 if basis is None else basis + 1
        path = descend(rest, solution, sweeps, eliminate=eliminate)
        next(path)  # where it starts
        for _ in path:
            yield number, float(solution.losses().sum() / energy) if energy > 0 else 0.0
        solution.make_scales_positive()
        bases.take(statistics, basis, solution)


def _answers(statistics: LayerStatistics, codes: Tensor) -> Tensor:
    products = statistics.products(codes)
    return torch.cat([products.rows(block) for block in row_blocks(len(codes))])
