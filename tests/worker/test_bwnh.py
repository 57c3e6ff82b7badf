"""BWNH against brute force and direct formulas: the checks (a) to (f) of its method sheet."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.paper.variants import bwnh_as_published
from store.specs import BwnhParameters
from worker import descent
from worker.accumulation import accumulate
from worker.methods import bwn, bwnh
from worker.methods.protocol import BinaryFilters, LayerProblem
from worker.statistics import GramStatistics, LayerStatistics, SampleStatistics


def correlated_samples(generator: torch.Generator, samples: int, inputs: int) -> Tensor:
    """Samples (M, S) as a layer sees them: correlated and not negative."""
    mixing = torch.randn(inputs, inputs, generator=generator)
    return (torch.randn(samples, inputs, generator=generator) @ mixing + 0.5).relu()


def statistics_of(seen: Tensor, targets: Tensor) -> LayerStatistics:
    return accumulate([(seen, targets)], seen.shape[1], targets.shape[1], len(seen))


PAPER = BwnhParameters(**bwnh_as_published()).own_parameters()


def solve(seen: Tensor, targets: Tensor, weight: Tensor, **parameters: object) -> BinaryFilters:
    """Solve by the paper's form of the method, but for ``parameters``."""
    problem = LayerProblem(weight, lambda *_: statistics_of(seen, targets), lambda *_: None)
    return bwnh.binarize(problem, **{**PAPER, **parameters})  # type: ignore[arg-type]


def errors(seen: Tensor, targets: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """``||t - a Xt^T b||^2 / ||t||^2`` per filter, straight from its definition, in float64."""
    responses = seen.double() @ (codes * scale[:, None]).double().T
    return (targets.double() - responses).square().sum(dim=0) / targets.double().square().sum(dim=0)


def with_best_scale(seen: Tensor, targets: Tensor, codes: Tensor) -> Tensor:
    responses = seen.double() @ codes.double().T
    best = (responses * targets.double()).sum(dim=0) / responses.square().sum(dim=0)
    return errors(seen, targets, codes.double(), best)


def test_every_solution_lies_between_the_optimum_and_the_start() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, filters = 10, 60
    seen = correlated_samples(generator, 200, inputs)
    weight = torch.randn(filters, inputs, generator=generator)
    targets = seen @ weight.T
    all_codes = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=inputs)))
    responses = seen.double() @ all_codes.double().T
    # The best scale leaves ||t||^2 - (t.r)^2 / ||r||^2; a sign vector of no response leaves it all.
    explained = (responses.T @ targets.double()).square() / responses.square().sum(dim=0)[:, None]
    energy = targets.double().square().sum(dim=0)
    optimum = ((energy - explained.nan_to_num(0.0)) / energy).min(dim=0).values

    solved = solve(seen, targets, weight)
    found = errors(seen, targets, solved.codes, solved.scale)
    signs = bwn.binarize(LayerProblem(weight, lambda *_: pytest.fail("no data"), lambda *_: None))
    start = with_best_scale(seen, targets, signs.codes)

    assert (found >= optimum - 1e-6).all()
    assert (found <= start + 1e-6).all()
    # The sheet's trial: 40 % exactly optimal, mean excess 3.6 % against 14.9 % for the signs.
    assert (found <= optimum + 1e-6).double().mean() > 0.25
    assert (found - optimum).mean() < 0.5 * (start - optimum).mean()


def test_no_scale_step_and_no_single_bit_raises_the_loss() -> None:
    generator = torch.Generator().manual_seed(1)
    seen = correlated_samples(generator, 120, 40).double()
    weight = torch.randn(7, 40, generator=generator).double()
    targets = seen @ weight.T
    gram, projection = seen.T @ seen, seen.T @ targets
    codes = torch.where(weight >= 0, 1.0, -1.0).double().T.contiguous()
    scales = weight.abs().mean(dim=1)
    loss = errors(seen, targets, codes.T, scales)
    for _ in range(3):
        responses = seen @ codes
        correlation, response = (responses * targets).sum(dim=0), responses.square().sum(dim=0)
        scales = correlation / response
        after = errors(seen, targets, codes.T, scales)
        assert (after <= loss + 1e-12).all()
        loss = after
        for j in range(len(codes)):
            row = slice(j, j + 1)
            descent.decide(
                codes[row].numpy(),
                (gram[row] @ codes).numpy(),
                projection[row].numpy(),
                gram[row, row].numpy(),
                scales.numpy(),
                correlation.numpy(),
                response.numpy(),
            )
            after = errors(seen, targets, codes.T, scales)
            assert (after <= loss + 1e-12).all()
            loss = after
        responses = seen @ codes
        torch.testing.assert_close(correlation, (responses * targets).sum(dim=0))
        torch.testing.assert_close(response, responses.square().sum(dim=0))


@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.integers(1, 9), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_blocks_decide_as_the_plain_row_by_row_rule(
    seed: int, inputs: int, filters: int, sweeps: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Whole numbers, and 64 samples to divide by: every sum is exact, whatever its order.
    seen = torch.randint(-2, 3, (64, inputs), generator=generator).float()
    targets = torch.randint(-9, 10, (64, filters), generator=generator).float()
    weight = torch.randn(filters, inputs, generator=generator)
    solved = solve(seen, targets, weight, sweeps=sweeps, scale=False)

    gram, projection = (seen.T @ seen).numpy(), (seen.T @ targets).numpy()
    codes = np.where(weight.numpy() >= 0, 1.0, -1.0).T.copy()
    for _ in range(sweeps):
        before = codes.copy()
        for j in range(inputs):
            gain = projection[j] - (gram[j] @ codes - gram[j, j] * codes[j])
            codes[j] = np.where(gain > 0, 1.0, np.where(gain < 0, -1.0, codes[j]))
        if (codes == before).all():
            break
    np.testing.assert_array_equal(solved.codes.numpy().T, codes)


def test_reported_losses_are_the_definition_and_never_rise() -> None:
    generator = torch.Generator().manual_seed(2)
    seen = correlated_samples(generator, 600, 150)
    weight = torch.randn(20, 150, generator=generator)
    targets = correlated_samples(generator, 600, 150) @ weight.T
    energy = targets.double().square().sum(dim=0)
    solved = solve(seen, targets, weight, sweeps=6)
    assert len(solved.losses) <= 7
    assert all(b <= a + 1e-6 for a, b in itertools.pairwise(solved.losses))
    direct = errors(seen, targets, solved.codes, solved.scale) * energy
    assert solved.losses[-1] == pytest.approx(float(direct.sum() / energy.sum()), rel=1e-4)
    signs = solve(seen, targets, weight, sweeps=0)
    start = errors(seen, targets, signs.codes, signs.scale) * energy
    assert torch.equal(signs.codes, torch.where(weight >= 0, 1.0, -1.0))
    torch.testing.assert_close(signs.scale, weight.abs().mean(dim=1))
    assert solved.losses[0] == pytest.approx(float(start.sum() / energy.sum()), rel=1e-4)


def test_gram_and_samples_give_the_same_solution() -> None:
    generator = torch.Generator().manual_seed(3)
    seen = torch.randint(-3, 4, (40, 100), generator=generator).float()
    targets = torch.randint(-9, 10, (40, 12), generator=generator).float()
    weight = torch.randn(12, 100, generator=generator)
    few = statistics_of(seen, targets)
    assert isinstance(few, SampleStatistics)
    gram = GramStatistics(
        seen.T @ seen / 40, few.projection, few.energy, few.input_mean, few.target_mean
    )
    for ridge in (0.0, 0.5):
        by_samples, by_gram = (
            bwnh.binarize(
                LayerProblem(weight, lambda *_, s=form: s, lambda *_: None),
                **{**PAPER, "ridge": ridge, "sweeps": 4},
            )
            for form in (few, gram)
        )
        agree = (by_samples.codes == by_gram.codes).float().mean()
        assert agree > 0.999
        assert by_samples.losses[-1] == pytest.approx(by_gram.losses[-1], rel=1e-3)


def test_white_input_gives_sign_and_mean_magnitude() -> None:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(4))
    means = torch.zeros(32), torch.zeros(8)
    white = GramStatistics(torch.eye(32), weight.T.contiguous(), weight.square().sum(dim=1), *means)
    solved = bwnh.binarize(LayerProblem(weight, lambda *_: white, lambda *_: None), **PAPER)
    torch.testing.assert_close(solved.codes, torch.where(weight >= 0, 1.0, -1.0))
    torch.testing.assert_close(solved.scale, weight.abs().mean(dim=1))


@given(st.integers(0, 2**32 - 1), st.sampled_from([2.0**-24, 0.25, 2.0, 2.0**20]))
@settings(max_examples=25, deadline=None)
def test_scaling_data_or_weights_and_flipping_a_weight(seed: int, factor: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    seen = correlated_samples(generator, 80, 24)
    weight = torch.randn(5, 24, generator=generator)
    plain = solve(seen, seen @ weight.T, weight)

    # Powers of two change no rounding, so equality is exact.
    data = solve(seen * factor, (seen * factor) @ weight.T, weight)
    assert torch.equal(data.codes, plain.codes)
    torch.testing.assert_close(data.scale, plain.scale)

    larger = solve(seen, seen @ (weight * factor).T, weight * factor)
    assert torch.equal(larger.codes, plain.codes)
    torch.testing.assert_close(larger.scale, plain.scale * factor)

    turned = solve(seen, seen @ -weight.T, -weight)
    assert torch.equal(turned.codes, -plain.codes)
    torch.testing.assert_close(turned.scale, plain.scale)


def test_weights_that_are_binary_already_are_found_at_once() -> None:
    generator = torch.Generator().manual_seed(5)
    seen = correlated_samples(generator, 300, 30)
    codes = torch.where(torch.randn(6, 30, generator=generator) >= 0, 1.0, -1.0)
    scale = torch.rand(6, generator=generator) + 0.1
    weight = codes * scale[:, None]
    solved = solve(seen, seen @ weight.T, weight)
    assert torch.equal(solved.codes, codes)
    torch.testing.assert_close(solved.scale, scale)
    assert solved.losses[-1] == pytest.approx(0, abs=1e-5)
    assert len(solved.losses) == 2


def test_a_dead_input_leaves_the_starting_values() -> None:
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(6))
    seen = torch.zeros(20, 16)
    solved = solve(seen, torch.zeros(20, 3), weight)
    torch.testing.assert_close(solved.codes, torch.where(weight >= 0, 1.0, -1.0))
    torch.testing.assert_close(solved.scale, weight.abs().mean(dim=1))
    assert torch.isfinite(solved.scale).all()


def test_scales_are_never_negative() -> None:
    generator = torch.Generator().manual_seed(7)
    seen = correlated_samples(generator, 100, 8)
    weight = torch.randn(40, 8, generator=generator)
    # Targets opposed to the weights drive the first scales below zero.
    solved = solve(seen, -(seen @ weight.T), weight, sweeps=1)
    assert (solved.scale >= 0).all()
    assert with_best_scale(seen, -(seen @ weight.T), solved.codes).mean() < 0.5


def test_without_scale_every_scale_is_one() -> None:
    generator = torch.Generator().manual_seed(8)
    seen = correlated_samples(generator, 100, 20)
    weight = torch.randn(4, 20, generator=generator)
    solved = solve(seen, seen @ weight.T, weight, scale=False)
    assert torch.equal(solved.scale, torch.ones(4))


def test_a_strong_ridge_gives_back_the_signs() -> None:
    generator = torch.Generator().manual_seed(9)
    seen = correlated_samples(generator, 100, 20)
    weight = torch.randn(4, 20, generator=generator)
    free, tied = (solve(seen, seen @ weight.T, weight, ridge=r) for r in (0.0, 1e6))
    assert torch.equal(tied.codes, torch.where(weight >= 0, 1.0, -1.0))
    assert not torch.equal(free.codes, tied.codes)
