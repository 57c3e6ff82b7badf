"""The searches for bits and scales against brute force and direct formulas."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.paper.variants import bwnh_as_published
from store.errors import InvalidSpec
from store.specs import BwnhParameters
from worker import bit_pairs
from worker.accumulation import accumulate
from worker.bit_pairs import turn_pairs
from worker.descent import Solution, descend
from worker.methods import bwnh
from worker.methods.protocol import BinaryFilters, LayerProblem
from worker.residual_bases import Bases, add_basis
from worker.starts import STARTS
from worker.statistics import GramStatistics, LayerStatistics, SampleStatistics

FILTERS = 40


def problem(seed: int, inputs: int, samples: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """Correlated samples (M, S), not negative, targets (M, N) with noise, weights (S, N)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator)
    seen = (torch.randn(samples, inputs, generator=generator) @ mixing + 0.5).relu()
    weight = torch.randn(inputs, FILTERS, generator=generator)
    targets = seen @ weight
    return seen, targets + torch.randn(targets.shape, generator=generator), weight


def statistics_of(seen: Tensor, targets: Tensor) -> LayerStatistics:
    return accumulate([(seen, targets)], seen.shape[1], targets.shape[1], len(seen))


def losses(seen: Tensor, targets: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """``||t - a Xt^T b||^2 / M`` per filter, straight from its definition."""
    error = targets.double() - (seen.double() @ codes.double()) * scales
    return error.square().mean(dim=0)


def at_best_scale(seen: Tensor, targets: Tensor, codes: Tensor) -> Tensor:
    answers = seen.double() @ codes.double()
    best = (answers * targets).sum(dim=0) / answers.square().sum(dim=0)
    return losses(seen, targets, codes, best)


def optimum(seen: Tensor, targets: Tensor) -> Tensor:
    """The least loss of any code with its best scale, by trying all of them."""
    every = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=seen.shape[1]))).T
    answers = seen.double() @ every.double()
    norms = answers.square().sum(dim=0)
    explained = (answers.T @ targets.double()).square() / norms[:, None]
    return (targets.double().square().sum(dim=0) - explained.max(dim=0).values) / len(seen)


def run(
    statistics: LayerStatistics, weight: Tensor, *, eliminate: bool
) -> tuple[Solution, list[float]]:
    codes, scales = STARTS["sign"](statistics, weight, torch.Generator())
    solution = Solution.start(statistics, codes, scales)
    return solution, list(descend(statistics, solution, 30, eliminate=eliminate))


@pytest.mark.parametrize("eliminate", [False, True])
@pytest.mark.parametrize("samples", [200, 8])
def test_no_sweep_raises_the_loss_and_what_is_tracked_is_true(
    eliminate: bool, samples: int
) -> None:
    seen, targets, weight = problem(0, 90, samples)
    statistics = statistics_of(seen, targets)
    solution, path = run(statistics, weight, eliminate=eliminate)
    assert all(after <= before + 1e-6 for before, after in itertools.pairwise(path))
    found = losses(seen, targets, solution.codes, solution.scales)
    torch.testing.assert_close(solution.losses(), found, rtol=1e-3, atol=1e-4)
    answers = seen.double() @ solution.codes.double()
    torch.testing.assert_close(
        solution.response, answers.square().mean(dim=0), rtol=1e-4, atol=1e-5
    )


def test_an_eliminated_scale_leaves_no_single_bit_to_turn() -> None:
    seen, targets, weight = problem(1, 30)
    solution, _ = run(statistics_of(seen, targets), weight, eliminate=True)
    end = at_best_scale(seen, targets, solution.codes)
    for j in range(30):
        turned = solution.codes.clone()
        turned[j] *= -1
        assert (at_best_scale(seen, targets, turned) >= end - 1e-5 * end).all()


@pytest.mark.parametrize("inputs", [6, 10, 12])
def test_every_search_lies_between_the_optimum_and_what_it_builds_on(inputs: int) -> None:
    seen, targets, weight = problem(inputs, inputs)
    statistics = statistics_of(seen, targets)
    best = optimum(seen, targets)
    plain, _ = run(statistics, weight, eliminate=False)
    eliminated, _ = run(statistics, weight, eliminate=True)
    for solution in (plain, eliminated):
        assert (at_best_scale(seen, targets, solution.codes) >= best - 1e-6 * best.abs()).all()
    # Pairs go on from where single bits end.
    before = at_best_scale(seen, targets, eliminated.codes)
    while turn_pairs(statistics, eliminated, inputs):
        after = at_best_scale(seen, targets, eliminated.codes)
        assert (after <= before + 1e-5 * before).all()
        before = after
    for one, other in itertools.combinations(range(inputs), 2):
        turned = eliminated.codes.clone()
        turned[[one, other]] *= -1
        assert (at_best_scale(seen, targets, turned) >= before * (1 - 1e-5)).all()


def test_each_stronger_search_is_better_on_average_and_several_starts_in_every_filter() -> None:
    plain, eliminated, pairs, starts = [], [], [], []
    for seed in range(5):
        seen, targets, weight = problem(100 + seed, 12)
        floor = optimum(seen, targets)

        def excess(
            floor: Tensor = floor,
            seen: Tensor = seen,
            targets: Tensor = targets,
            weight: Tensor = weight,
            **options: object,
        ) -> Tensor:
            found = binarize(seen, targets, weight, **options)
            return at_best_scale(seen, targets, found.codes.T) - floor

        base = excess()
        plain.append(base.mean())
        eliminated.append(excess(eliminate_scale=True).mean())
        pairs.append(excess(eliminate_scale=True, bit_pairs=12).mean())
        several = excess(starts=("sign", "greedy", "random", "random", "random"))
        assert (several <= base + 1e-5 * floor).all()
        starts.append(several.mean())
    assert np.mean(eliminated) < np.mean(plain)
    assert np.mean(pairs) < np.mean(eliminated)
    assert np.mean(starts) < 0.6 * np.mean(plain)


def binarize(
    seen: Tensor,
    targets: Tensor,
    weight: Tensor,
    report: Callable[..., None] = lambda *_: None,
    seed: int = 0,
    **options: object,
) -> BinaryFilters:
    statistics = statistics_of(seen, targets)
    size = weight.numel()
    asked = LayerProblem(weight.T, lambda *_: statistics, report, seed, network_bits=size)
    paper = BwnhParameters(**bwnh_as_published()).own_parameters()
    return bwnh.binarize(asked, **{**paper, **options})  # type: ignore[arg-type]


def test_the_greedy_start_is_better_than_the_signs() -> None:
    seen, targets, weight = problem(7, 60, 400)
    statistics = statistics_of(seen, targets)
    signs, greedy = (
        at_best_scale(seen, targets, STARTS[name](statistics, weight, torch.Generator())[0])
        for name in ("sign", "greedy")
    )
    assert greedy.mean() < 0.7 * signs.mean()
    # With a white input there is nothing to make up for.
    means = torch.zeros(60), torch.zeros(FILTERS)
    white = GramStatistics(torch.eye(60), weight, weight.square().sum(dim=0), *means)
    codes, scales = STARTS["greedy"](white, weight, torch.Generator())
    assert torch.equal(codes, torch.where(weight >= 0, 1.0, -1.0))
    torch.testing.assert_close(scales.float(), weight.abs().mean(dim=0))


def test_random_starts_depend_on_the_seed_alone() -> None:
    seen, targets, weight = problem(8, 40)
    one, same, other = (
        binarize(seen, targets, weight, seed=seed, starts=("random",), sweeps=0).codes
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert 0.3 < (one > 0).float().mean() < 0.7


@pytest.mark.parametrize("offset", [False, True])
def test_a_correction_too_small_for_what_a_layer_is_fed_is_answered(offset: bool) -> None:
    # Inputs that repeat each other, whose sums are rounded to float32 at a size of 10,000.
    seen, targets, weight = problem(16, 60, 200)
    seen = seen[:, :1] + 100 + 1e-3 * seen
    with pytest.raises(InvalidSpec) as caught:
        binarize(seen, targets, weight, offset=offset, correction=1e-12)
    assert caught.value.field == "spec.method.correction" and caught.value.remedy
    binarize(seen, targets, weight, offset=offset, correction=0.1)


@pytest.mark.parametrize("bases", [1, 3])
def test_the_loss_reported_last_is_that_of_what_is_handed_over(bases: int) -> None:
    seen, targets, weight = problem(13, 24)
    wanted = {"bases": bases, "bases_above": 0.0, "bases_budget": 9.0}
    found = binarize(seen, targets, weight, starts=("sign", "greedy", "random"), **wanted)
    assert all(after <= before + 1e-6 for before, after in itertools.pairwise(found.losses))
    codes, scale = found.codes.reshape(bases, FILTERS, -1), found.scale.reshape(bases, FILTERS)
    combined = torch.einsum("kn,kns->sn", scale.double(), codes.double())
    error = (targets.double() - seen.double() @ combined).square().sum()
    direct = float(error / targets.double().square().sum())
    assert found.losses[-1] == pytest.approx(direct, rel=1e-3)


@pytest.mark.parametrize("sweeps", [0, 3, 100])
def test_progress_goes_forward_and_counts_the_sweeps_of_each_start(sweeps: int) -> None:
    told: list[tuple[float, str, dict[str, Any]]] = []
    seen, targets, weight = problem(14, 40)
    starts = ("sign", "random")
    options = {"sweeps": sweeps, "bit_pairs": 8, "bases": 2, "bases_above": 0.0}
    found = binarize(
        *(seen, targets, weight, lambda *one: told.append(one)),
        starts=starts,
        bases_budget=1.0,
        **options,
    )
    fractions = [fraction for fraction, _, _ in told]
    assert fractions == sorted(fractions) and fractions[-1] == 1
    assert [text.split("after ")[-1] for _, text, _ in told].count("0 sweeps") == len(starts)
    if sweeps == 100:
        # The first of 100 sweeps of the first of two starts.
        assert fractions[1] == pytest.approx(1 / 200)
    # Every sweep is told once, by its number in the layer, and says which basis it was over.
    sweeps_told = [event for _, _, event in told if event["event"] == "sweep"]
    assert [event["sweep"] for event in sweeps_told] == list(range(len(told)))
    bases = [event["base"] for event in sweeps_told]
    first = bases.index(2)
    assert bases[:first] == [1] * first
    assert set(bases[first:]) == {1, 2}
    # At the end of each start a filter may yet be given what another start has found for it.
    pairs = list(zip(found.losses[:first], sweeps_told[:first], strict=True))
    assert all(kept <= event["loss"] for kept, event in pairs)
    assert sum(kept < event["loss"] for kept, event in pairs) <= len(starts)
    assert told[-1][1].endswith("with 2 bases")
    assert sweeps_told[-1]["loss"] >= found.losses[-1] - 1e-6


@pytest.mark.parametrize("samples", [200, 8])
def test_pairs_of_many_filters_are_tried_in_parts(
    samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, targets, weight = problem(15, 30, samples)
    ends = []
    for most in (bit_pairs.MOST_PAIRS, 3 * 16**2, 1):
        monkeypatch.setattr(bit_pairs, "MOST_PAIRS", most)
        statistics = _Watched(statistics_of(seen, targets))
        solution, _ = run(statistics, weight, eliminate=True)
        gained = turn_pairs(statistics, solution, 16)
        assert max(statistics.blocks) <= max(most // 16**2, 1)
        assert sum(statistics.blocks) == FILTERS
        ends.append((gained, solution))
    (gained, whole), *parts = ends
    assert gained > 0
    for count, part in parts:
        assert count == gained
        assert torch.equal(part.codes, whole.codes) and torch.equal(part.scales, whole.scales)


class _Watched:
    """Statistics that note of how many filters at once G's entries are asked for."""

    def __init__(self, statistics: LayerStatistics) -> None:
        self.statistics = statistics
        self.blocks: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.statistics, name)

    def gram_at(self, rows: Tensor) -> Tensor:
        self.blocks.append(rows.shape[1])
        return self.statistics.gram_at(rows)


@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 30, 300]))
@settings(max_examples=15, deadline=None)
def test_an_offset_is_that_of_least_squares(seed: int, samples: int) -> None:
    seen, targets, weight = problem(seed, 20, samples)
    targets += 3.0
    found = binarize(seen, targets, weight, offset=True, sweeps=6)
    assert found.offset is not None
    for filter_ in range(3):
        answer = (seen @ found.codes[filter_]).double().numpy()
        columns = np.stack([answer, np.ones(samples)], axis=1)
        fitted, *_ = np.linalg.lstsq(columns, targets[:, filter_].double().numpy(), rcond=None)
        assert found.scale[filter_] == pytest.approx(fitted[0], rel=2e-3, abs=1e-4)
        assert found.offset[filter_] == pytest.approx(fitted[1], rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("samples", [400, 12])
@pytest.mark.parametrize("offset", [False, True])
def test_corrected_targets_are_what_real_weights_answer(samples: int, offset: bool) -> None:
    seen, targets, weight = problem(9, 25, samples)
    statistics = statistics_of(seen, targets)
    assert isinstance(statistics, GramStatistics if samples > 25 else SampleStatistics)
    x, t = seen.double(), targets.double()
    if offset:
        statistics = statistics.centred()
        x, t = x - x.mean(dim=0), t - t.mean(dim=0)
    ridge = 0.3
    gram = x.T @ x / samples
    system = gram + ridge * torch.eye(25)
    real = torch.linalg.solve(system, x.T @ t / samples + ridge * weight.double())
    found = statistics.real_weights(ridge, weight)
    torch.testing.assert_close(found.double(), real, rtol=1e-3, atol=1e-3)
    corrected = statistics.with_targets_of(found)
    direct = statistics_of(x.float(), (x @ real).float())
    torch.testing.assert_close(corrected.projection, direct.projection, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(corrected.energy, direct.energy, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("samples", [400, 12])
def test_centred_statistics_are_those_of_centred_samples(samples: int) -> None:
    seen, targets, _ = problem(10, 25, samples)
    found = statistics_of(seen, targets + 2).centred()
    direct = statistics_of(seen - seen.mean(dim=0), targets - targets.mean(dim=0))
    whole = slice(0, 25)
    for one, other in (
        (found.gram_block(whole), direct.gram_block(whole)),
        (found.projection, direct.projection),
        (found.energy, direct.energy),
        (found.diagonal(), direct.diagonal()),
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    rows = torch.tensor([[0, 3], [7, 1], [24, 2]])
    for column, block in zip(rows.T, found.gram_at(rows), strict=True):
        torch.testing.assert_close(block, found.gram_block(whole)[column][:, column])


def test_a_wide_gram_matrix_is_complete_although_half_is_computed() -> None:
    seen, targets = torch.randn(2500, 2400), torch.randn(2500, 2)
    found = statistics_of(seen, targets)
    assert isinstance(found, GramStatistics)
    torch.testing.assert_close(found.gram, seen.T @ seen / 2500, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("eliminate", [False, True])
@pytest.mark.parametrize("samples", [200, 8])
def test_no_further_basis_raises_the_loss(eliminate: bool, samples: int) -> None:
    seen, targets, weight = problem(11, 24, samples)
    statistics = statistics_of(seen, targets)
    first, _ = run(statistics, weight, eliminate=eliminate)
    first.make_scales_positive()
    bases = Bases.of(statistics, first)
    path = [bases.loss(statistics)]
    for count in (2, 3, 4):
        told = list(add_basis(statistics, bases, weight, 8, eliminate=eliminate))
        path.append(bases.loss(statistics))
        # The new basis, then each once more; the scales are fitted after the last sweep.
        assert [number for number, _ in itertools.groupby(number for number, _ in told)] == [
            *(count, *range(1, count + 1)),
        ]
        assert told[-1][1] >= path[-1] - 1e-6
        assert bases.codes.shape == (count, 24, FILTERS)
        assert (bases.scales >= 0).all()
        combined = torch.einsum("kn,ksn->sn", bases.scales, bases.codes.double())
        direct = (targets.double() - seen.double() @ combined).square().mean(dim=0)
        torch.testing.assert_close(bases.losses(statistics), direct, rtol=1e-2, atol=1e-3)
    assert all(after <= before + 1e-6 for before, after in itertools.pairwise(path))
    assert path[1] < 0.6 * path[0]


def test_bases_come_where_the_loss_is_high_and_the_budget_allows() -> None:
    seen, targets, weight = problem(12, 20)
    asked = {"bases": 3, "bases_above": 0.0}
    assert binarize(seen, targets, weight, **asked, bases_budget=0.9).codes.ndim == 2
    two = binarize(seen, targets, weight, **asked, bases_budget=1.0)
    assert two.codes.shape == (2, FILTERS, 20) and two.scale.shape == (2, FILTERS)
    assert binarize(seen, targets, weight, **asked, bases_budget=9.0).codes.shape[0] == 3
    assert binarize(seen, targets, weight, bases=3, bases_above=1.0).codes.ndim == 2
