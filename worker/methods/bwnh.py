"""BWNH: binary weights by hashing (Hu, Wang and Cheng, "From Hashing to CNNs", AAAI 2018).

Every filter is coded as ``a b``, b in {-1, +1}^S, such that its responses on the input that the
binarized network really sees come close to the full-precision responses (Eq. 13):

    min over a, b   L = ||t - a Xt^T b||^2 = e - 2 a b^T p + a^2 b^T G b

by alternation, from ``b = sign(w)``, ``a = mean|w|``, between the best scale for the bits and the
best bits, one after the other, for the scale (`worker.descent`).

Beyond the paper, each on its own and all from the same sums:

*   the loss may leave the mean to an offset, ask only for what real weights could do, and hold on
    to the weights (`worker.statistics`);
*   the search may start at several points, keeping the best of each filter (`worker.starts`),
    eliminate the scale from the test of a bit (`worker.descent`), and turn pairs of bits
    (`worker.bit_pairs`);
*   a layer may have further bases (`worker.residual_bases`).

``binarize(problem, sweeps=20, offset=False, correction=0, ...)`` with everything else at its
neutral value is the paper's method.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from store.errors import InvalidSpec
from worker.bit_pairs import turn_pairs
from worker.descent import Solution, descend
from worker.methods.protocol import BinaryFilters, LayerProblem, Target
from worker.residual_bases import Bases, add_basis
from worker.starts import STARTS
from worker.statistics import LayerStatistics

StartName = Literal["sign", "greedy", "random"]

# Pairs of bits are turned at most so often, each time followed by sweeps over single bits.
PAIR_ROUNDS = 8

# Sweeps over the bits of a further basis, and over those of the others after it.
BASIS_SWEEPS = 8


def binarize(
    problem: LayerProblem,
    /,
    *,
    sweeps: int = 20,
    target: Target = "full_precision",
    scale: bool = True,
    offset: bool = True,
    correction: float = 0.0,
    ridge: float = 0.0,
    blocks: bool = False,
    positions: int = 65_536,
    starts: Sequence[StartName] = ("sign",),
    eliminate_scale: bool = True,
    bit_pairs: int = 0,
    bases: int = 4,
    bases_above: float = 0.015,
    bases_budget: float = 0.025,
) -> BinaryFilters:
    """Binarize one layer by BWNH.

    Args:
        sweeps: most passes over all bits; it stops earlier once no bit turns. With 0 the start
            is the result.
        target: the network whose input the target responses are computed on.
        blocks: the layer that ends a residual block aims at the block's result, and so makes up for
            the errors of the block's other side.
        scale: learn one scale per filter; False fixes it at 1 (the paper's Figure 3).
        offset: learn an offset per filter too.
        correction: targets are what real-valued weights make of the binarized network's input,
            held to the full-precision weights with ``correction * mean(diag G)``; 0: no such
            targets, which is the same as without a hold.
        ridge: adds ``ridge * mean(diag G) * ||w - a b||^2`` to the loss.
        positions: most samples (output positions) that enter the statistics.
        starts: where the search starts; each filter keeps its best result.
        eliminate_scale: turn a bit where that helps at the scale that would be best afterwards.
        bit_pairs: so many of a filter's bits are tried in pairs, once no single bit turns; 0: none.
        bases: most bases of a layer.
        bases_above: a layer has another basis while its relative loss is above this and the budget
            lasts. Layers are asked in the order of execution, not by their loss: what the first
            ones lose, all others are fed.
        bases_budget: all further bases of the network together have at most this share of its
            weights as bits.
    """
    collected = problem.statistics(target, positions, blocks)
    weight = problem.weight.T.contiguous()
    statistics = _loss_of(collected, weight, offset, correction, ridge)
    generator = torch.Generator().manual_seed(problem.seed)
    losses: list[float] = []
    best: Solution | None = None
    for number, name in enumerate(starts):
        codes, scales = STARTS[name](statistics, weight, generator)
        if not scale:
            scales = torch.ones_like(scales)
        solution = Solution.start(statistics, codes.contiguous(), scales, learn_scale=scale)
        path = _search(statistics, solution, sweeps, eliminate_scale, bit_pairs)
        for done, loss in enumerate(path):
            losses.append(loss if best is None else min(loss, losses[-1]))
            # Sweeps that follow pairs of bits are beyond the most there are without.
            fraction = (number + min(done / max(sweeps, 1), 1)) / len(starts)
            message = f"loss {losses[-1]:.4f} after {done} sweeps"
            problem.report(fraction, message, _sweep(len(losses) - 1, 1, losses[-1]))
        best = solution if best is None else _better(best, solution)
        losses[-1] = best.loss()
    assert best is not None
    best.make_scales_positive()
    found = Bases.of(statistics, best)
    spare = bases_budget * problem.network_bits - problem.further_bits
    passes = len(losses) - 1
    while (
        len(found.codes) < bases
        and scale
        and losses[-1] > bases_above
        and len(found.codes) * weight.numel() <= spare
    ):
        count = len(found.codes) + 1
        for basis, loss in add_basis(
            statistics, found, weight, BASIS_SWEEPS, eliminate=eliminate_scale
        ):
            passes += 1
            message = f"loss {loss:.4f} with {count} bases"
            problem.report(1.0, message, _sweep(passes, basis, loss))
        losses.append(found.loss(statistics))
    return _filters(collected, found, tuple(losses), offset)


def _sweep(number: int, basis: int, loss: float) -> dict[str, Any]:
    """Return what is told of a sweep: its number in the layer, its basis (from 1), the loss."""
    return {"event": "sweep", "base": basis, "sweep": number, "loss": loss}


def _loss_of(
    statistics: LayerStatistics, weight: Tensor, offset: bool, correction: float, ridge: float
) -> LayerStatistics:
    """Return the statistics of the loss that is asked for; ``weight`` is (S, N)."""
    if offset:
        statistics = statistics.centred()
    unit = statistics.mean_diagonal()
    if correction > 0 and unit > 0:
        real = _held(statistics, correction * unit, weight)
        statistics = statistics.with_targets_of(real)
    if ridge > 0:
        statistics = statistics.with_ridge(ridge * unit, weight)
    return statistics


def _held(statistics: LayerStatistics, ridge: float, weight: Tensor) -> Tensor:
    try:
        return statistics.real_weights(ridge, weight)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        # As G is rounded, its least eigenvalues may lie below 0 by more than the ridge.
        raise InvalidSpec(
            "The inputs of a layer depend on each other too closely for so small a correction.",
            field="spec.method.correction",
            remedy="Ask for a larger correction, such as 0.1, or for none.",
        ) from None


def _search(
    statistics: LayerStatistics, solution: Solution, sweeps: int, eliminate: bool, bit_pairs: int
) -> Iterator[float]:
    """Improve ``solution`` in place; yield its loss at the start and after every sweep."""
    yield from descend(statistics, solution, sweeps, eliminate=eliminate)
    if bit_pairs == 0 or sweeps == 0 or not solution.learn_scale:
        return
    for _ in range(PAIR_ROUNDS):
        if turn_pairs(statistics, solution, bit_pairs) == 0:
            return
        _, *later = descend(statistics, solution, sweeps, eliminate=eliminate)
        yield from later


def _better(one: Solution, other: Solution) -> Solution:
    """Return, filter by filter, the solution that loses less; of equals, ``one``."""
    chosen = other.losses() < one.losses()
    for name in ("codes", "scales", "correlation", "response"):
        setattr(one, name, torch.where(chosen, getattr(other, name), getattr(one, name)))
    return one


def _filters(
    statistics: LayerStatistics, bases: Bases, losses: tuple[float, ...], offset: bool
) -> BinaryFilters:
    """Return the bases as filters, with the offsets that give them the targets' mean."""
    shift = None
    if offset:
        mean = statistics.input_mean.double()
        response = torch.einsum("s,ksn,kn->n", mean, bases.codes.double(), bases.scales)
        shift = (statistics.target_mean.double() - response).float()
    codes = bases.codes.transpose(1, 2).contiguous()
    scale = bases.scales.float()
    if len(codes) == 1:
        codes, scale = codes[0], scale[0]
    return BinaryFilters(codes, scale, losses, shift)
