"""Calibration of whole networks: patches, statistics, order, resumption, parity with the plan."""

import copy
import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.paper.variants import bwnh_as_published
from models.artifact import Artifact, encode
from models.layers import binarizable_layers, binarize_layer, float32_bytes, replace_layer
from models.lowering import lower
from models.preprocessing import InputSpec
from models.registry import build
from models.runtime import load
from store import specs
from store.errors import InvalidCheckpoint, InvalidSpec
from worker import activations, calibration, calibration_images
from worker import frontier as frontiers
from worker.accumulation import accumulate
from worker.activations import (
    PositionSampler,
    at_positions,
    filter_rows,
    filters_of,
    input_of,
    layer_order,
    output_positions,
    patches,
    responses,
)
from worker.batch_norm import load_norms, recalibrate_batch_norm
from worker.calibration_images import CalibrationImages
from worker.frontier import Frontier
from worker.methods import METHODS
from worker.statistics import GramStatistics, SampleStatistics

INPUT = InputSpec(3, 12, 12, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class SmallNet(nn.Module):
    """Convolutions, a residual sum and a linear layer, registered against their order of use."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.last = nn.Linear(16 * 36, 5)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.first = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.norm_two = nn.BatchNorm2d(16)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            for norm in (self.norm, self.norm_two):
                norm.weight.copy_(torch.rand(16, generator=generator) + 0.5)
                norm.running_mean.copy_(torch.randn(16, generator=generator) * 0.1)
                norm.running_var.copy_(torch.rand(16, generator=generator) + 0.5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = (self.norm_two(self.second(x)) + x).relu()
        logits: Tensor = self.last(x.flatten(1))
        return logits


class Pixels:
    """Images in memory, (N, H, W, C) uint8."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def pixels(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self.array[start:stop]


def images(seed: int, count: int = 60) -> CalibrationImages:
    rng = np.random.default_rng(seed)
    # Smooth images: neighbouring pixels agree, as in photographs.
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return CalibrationImages(Pixels(coarse.repeat(3, axis=1).repeat(3, axis=2)), INPUT)


def binarized(net: nn.Module, data: CalibrationImages, **options: object) -> nn.Module:
    method = str(options.pop("method", "bwnh"))
    result = copy.deepcopy(net)
    for name in layer_order(net, (3, 12, 12)):
        layer = calibration.calibrate_layer(
            net,
            result,
            name,
            data,
            method=method,
            parameters=options,
            seed=0,
            progress=lambda *_: None,
        )
        calibration.apply_layer(result, layer)
    return result


def test_layers_come_in_the_order_of_execution() -> None:
    assert layer_order(SmallNet(0), (3, 12, 12)) == ["first", "second", "last"]


@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 2),
)
@settings(max_examples=40, deadline=None)
def test_patches_times_filters_are_the_convolution(
    batch: int, channels: int, kernel: tuple[int, int], stride: int, padding: int, dilation: int
) -> None:
    layer = nn.Conv2d(channels, 5, kernel, stride, padding, dilation, bias=False)
    fed = torch.randn(batch, channels, 9, 8)
    with torch.no_grad():
        expected = layer(fed)
        height, width = output_positions(layer, fed)
        assert expected.shape[2:] == (height, width)
        rows = expected.permute(0, 2, 3, 1).reshape(-1, 5)
        filters = filter_rows(layer, layer.weight)
        assert torch.equal(filters_of(layer, filters), layer.weight)
        everything = patches(layer, fed, torch.arange(len(rows))) @ filters.T
        torch.testing.assert_close(everything, rows, rtol=1e-4, atol=1e-5)
        chosen = torch.randperm(len(rows))[: max(1, len(rows) // 2)]
        some = patches(layer, fed, chosen) @ filters.T
        torch.testing.assert_close(some, rows[chosen], rtol=1e-4, atol=1e-5)


def test_input_of_stops_before_the_layer() -> None:
    net = SmallNet(0)
    net.last.forward = lambda *_: pytest.fail("computed past the layer")  # type: ignore[method-assign]
    batch = torch.randn(2, 3, 12, 12)
    fed = input_of(net, "second", batch)
    torch.testing.assert_close(fed, net.norm(net.first(batch)).relu())
    with pytest.raises(InvalidSpec, match="takes no part"):
        input_of(nn.Sequential(nn.Identity(), _Unused()), "1.unused", batch)


class _Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_sampled_positions_are_seeded_capped_and_spread_over_the_batches() -> None:
    def draw(name: str, seed: int) -> list[Tensor]:
        sampler = PositionSampler(name, 10, positions=50, seed=seed)
        return [torch.cat(sampler.choose(batch, 36)) for batch in (7, 3)]

    def same(one: list[Tensor], other: list[Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    assert same(draw("second", 1), draw("second", 1))
    assert not same(draw("second", 1), draw("second", 2))
    assert not same(draw("second", 1), draw("first", 1))
    assert [len(part) for part in draw("second", 1)] == [35, 15]
    assert all(part.unique().equal(part) for part in draw("second", 1))
    few = PositionSampler("second", 10, positions=10**6, seed=0)
    assert torch.equal(torch.cat(few.choose(7, 36)), torch.arange(7 * 36))


def test_statistics_are_the_plain_sums() -> None:
    generator = torch.Generator().manual_seed(0)
    chunks = [
        (torch.randn(m, 12, generator=generator), torch.randn(m, 3, generator=generator))
        for m in (1, 7, 9000, 30)
    ]
    seen = torch.cat([x for x, _ in chunks]).double()
    targets = torch.cat([t for _, t in chunks]).double()
    found = accumulate(chunks, 12, 3, len(seen))
    assert isinstance(found, GramStatistics)
    for value, exact in (
        (found.gram, seen.T @ seen / len(seen)),
        (found.projection, seen.T @ targets / len(seen)),
        (found.energy, targets.square().mean(dim=0)),
    ):
        torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-5)
    with pytest.raises(InvalidSpec, match="no calibration sample"):
        accumulate([], 12, 3, 0)


def test_few_samples_are_kept_in_place_of_the_gram_matrix() -> None:
    seen, targets = torch.randn(5, 12), torch.randn(5, 3)
    found = accumulate([(seen[:2], targets[:2]), (seen[2:], targets[2:])], 12, 3, 5)
    assert isinstance(found, SampleStatistics)
    codes = torch.where(torch.randn(12, 3) >= 0, 1.0, -1.0)
    torch.testing.assert_close(
        found.products(codes).rows(slice(3, 9)), (seen.T @ seen / 5 @ codes)[3:9]
    )


def test_method_parameters_are_those_of_the_specification() -> None:
    assert set(METHODS) == set(specs.METHODS)
    for name, method in METHODS.items():
        accepted = {
            parameter.name: parameter.default
            for parameter in inspect.signature(method.binarize).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        # The pipeline itself re-estimates batch norm, after the last layer of any method.
        declared = {
            field: info.default
            for field, info in specs.METHODS[name].model_fields.items()
            if field in specs.METHODS[name]().own_parameters()
        }
        assert accepted == declared


def test_calibration_is_reproducible_and_goes_on_from_files(tmp_path: Path) -> None:
    net, data = SmallNet(1), images(1)
    whole = binarized(net, data)
    resumed = copy.deepcopy(net)
    for number, name in enumerate(layer_order(net, (3, 12, 12))):
        # As after a crash before every layer: rebuilt from the files of the finished ones.
        resumed = copy.deepcopy(net)
        for done in range(number):
            calibration.apply_layer(resumed, calibration.load_layer(tmp_path / f"{done}"))
        layer = calibration.calibrate_layer(
            net, resumed, name, data, method="bwnh", parameters={}, seed=0, progress=lambda *_: None
        )
        calibration.save_layer(layer, tmp_path / f"{number}")
        again = calibration.load_layer(tmp_path / f"{number}")
        assert again.name == layer.name and again.losses == layer.losses
        assert torch.equal(again.codes, layer.codes) and torch.equal(again.scale, layer.scale)
        calibration.apply_layer(resumed, again)
    for (name, one), other in zip(
        whole.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


def distance(net: nn.Module, other: nn.Module, data: CalibrationImages) -> float:
    batch = torch.cat(list(data.batches()))
    with torch.no_grad():
        return float((net(batch) - other(batch)).square().mean())


def test_hashing_beats_signs_and_asymmetric_beats_symmetric_targets() -> None:
    asymmetric, symmetric, signs = [], [], []
    for seed in range(6):
        net, held_out = SmallNet(seed), images(100 + seed)
        data = images(seed)
        paper = specs.BwnhParameters(**bwnh_as_published()).own_parameters()
        asymmetric.append(distance(net, binarized(net, data, **paper), held_out))
        paper["target"] = "binarized"
        symmetric.append(distance(net, binarized(net, data, **paper), held_out))
        signs.append(distance(net, binarized(net, data, method="bwn"), held_out))
    assert np.mean(asymmetric) < np.mean(symmetric)
    assert np.mean(asymmetric) < 0.7 * np.mean(signs)


@pytest.mark.parametrize("method", ["bwn", "bwnh"])
def test_packed_plan_answers_as_the_calibrated_network(method: str) -> None:
    net, data = SmallNet(3), images(3)
    trained = binarized(net, data, method=method)
    plan, tensors = lower(trained, (3, 12, 12))
    artifact = Artifact(plan, tensors, INPUT, tuple("abcde"), {}, {})
    batch = next(images(4).batches())
    with torch.no_grad():
        expected = trained(batch)
    answered = load(artifact, "reference").run(batch)
    assert (answered - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("batch", [1, 7, 60])
def test_batch_norm_is_re_estimated_from_all_images_whatever_the_batches(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration_images, "MOST_IMAGES_PER_BATCH", batch)
    net, data = SmallNet(5), images(5)
    fixed = copy.deepcopy(net)
    buffers = recalibrate_batch_norm(fixed, data, lambda *_: None)
    assert set(buffers) == {
        f"{norm}.{buffer}"
        for norm in ("norm", "norm_two")
        for buffer in ("running_mean", "running_var")
    }
    everything = torch.cat(list(data.batches()))
    with torch.no_grad():
        fed = net.first(everything)
        torch.testing.assert_close(fixed.norm.running_mean, fed.mean(dim=(0, 2, 3)))
        torch.testing.assert_close(fixed.norm.running_var, fed.var(dim=(0, 2, 3)))
        behind = net.second(fixed.norm(fed).relu())
        torch.testing.assert_close(fixed.norm_two.running_mean, behind.mean(dim=(0, 2, 3)))
        torch.testing.assert_close(fixed.norm_two.running_var, behind.var(dim=(0, 2, 3)))
    assert torch.equal(fixed.norm.running_mean, buffers["norm.running_mean"])
    assert not fixed.norm.training and fixed.norm.momentum == net.norm.momentum


def test_batch_norm_of_single_values_cannot_be_re_estimated() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(432, 4), nn.BatchNorm1d(4)).eval()
    with pytest.raises(InvalidSpec, match="at least two images"):
        recalibrate_batch_norm(net, images(0, 1), lambda *_: None)
    recalibrate_batch_norm(net, images(0, 2), lambda *_: None)


@pytest.mark.parametrize("samples", [4, 40])
def test_statistics_that_are_not_finite_are_refused(samples: int) -> None:
    for faulty in (float("nan"), float("inf"), 1e30):
        seen = torch.full((samples, 8), faulty)
        with pytest.raises(InvalidCheckpoint, match="not finite"):
            accumulate([(seen, seen)], 8, 8, samples)


def test_pieces_of_patches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "PATCHES_AT_ONCE", 100)
    pieces = PositionSampler("second", 10, positions=10**6, seed=0).choose(10, 36)
    assert max(map(len, pieces)) == 100
    assert torch.equal(torch.cat(pieces), torch.arange(360))


def test_a_grouped_convolution_is_refused_with_a_remedy() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten()).eval()
    data = CalibrationImages(
        Pixels(np.zeros((2, 5, 5, 1), np.uint8)), InputSpec(1, 5, 5, (0.0,), (1.0,))
    )
    with pytest.raises(InvalidSpec) as caught:
        calibration.calibrate_layer(
            nn.Sequential(nn.Conv2d(1, 4, 1), net).eval(),
            nn.Sequential(nn.Conv2d(1, 4, 1), net).eval(),
            "1.0",
            data,
            method="bwnh",
            parameters={},
            seed=0,
            progress=lambda *_: None,
        )
    assert caught.value.field == "spec.keep_float"


def test_responses_are_the_layer_without_its_bias() -> None:
    batch = torch.randn(2, 3, 6, 5)
    layer = nn.Conv2d(3, 4, 3, padding=1)
    chosen = torch.tensor([0, 31, 59])
    with torch.no_grad():
        made = at_positions(responses(layer, batch), chosen)
        rows = (layer(batch) - layer.bias[:, None, None]).permute(0, 2, 3, 1).reshape(-1, 4)
        torch.testing.assert_close(made, rows[chosen])
        linear = nn.Linear(90, 7)
        vectors = at_positions(responses(linear, batch.flatten(1)), torch.tensor([1]))
        torch.testing.assert_close(vectors, batch.flatten(1)[1:] @ linear.weight.T)


class Reusing(nn.Module):
    """A value that is read again three layers later, a method call, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.shift = nn.Parameter(torch.randn(1))
        self.last = nn.Linear(4 * 36, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.layers[0](x).relu()
        second = torch.relu(self.layers[1](first)) * self.shift
        third = self.layers[2](second) + first
        logits: Tensor = self.last(third.relu().flatten(1))
        return logits


@pytest.mark.parametrize("most", [0, 10**9])
def test_a_frontier_gives_every_layer_what_a_forward_pass_would(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frontiers, "MOST_BYTES", most)
    net = Reusing().eval()
    batches = [torch.randn(3, 4, 6, 6), torch.randn(1, 4, 6, 6)]
    frontier = Frontier(lambda: iter(batches))
    names = ["layers.0", "layers.1", "layers.1", "layers.2", "last", "layers.1"]
    with torch.no_grad():
        for name in names:
            # As calibration does: what lies before the layer is never changed again.
            for fed, batch in zip(frontier.inputs(net, name), batches, strict=True):
                assert torch.equal(fed.input, input_of(net, name, batch))
            if name == "layers.1":
                with torch.no_grad():
                    net.layers[1].weight.mul_(0.5)


def test_a_frontier_left_in_the_middle_starts_again() -> None:
    net, data = SmallNet(0), images(0, 150)
    frontier = Frontier(data.batches)
    with torch.no_grad():
        next(frontier.inputs(net, "second"))
        got = [fed.input for fed in frontier.inputs(net, "second")]
        for one, batch in zip(got, data.batches(), strict=True):
            assert torch.equal(one, input_of(net, "second", batch))


def test_a_frontier_computes_a_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net, data = SmallNet(0), images(0, 4)
    runs: dict[str, int] = {}
    for name, module in net.named_modules():
        module.register_forward_hook(
            lambda *_, name=name: runs.update({name: runs.get(name, 0) + 1})
        )
    frontier = Frontier(data.batches)
    with torch.no_grad():
        for name in ("first", "second", "last"):
            list(frontier.inputs(net, name))
    assert runs == {"first": 1, "norm": 1, "second": 1, "norm_two": 1}


def test_a_calibration_computes_either_network_once() -> None:
    net, data = SmallNet(0), images(0, 4)
    done = copy.deepcopy(net)
    frontier = Frontier(data.batches)
    runs: dict[str, int] = {}

    def count(name: str, fed: Tensor) -> None:
        # Not the single image that the size of a map is found by.
        if len(fed) > 1:
            runs[name] = runs.get(name, 0) + 1

    for label, network in (("full", net), ("binarized", done)):
        for name in ("norm", "norm_two"):
            network.get_submodule(name).register_forward_hook(
                lambda _, fed, __, name=f"{label} {name}": count(name, fed[0])
            )
    for name in ("first", "second", "last"):
        calibration.calibrate_next(
            net,
            done,
            name,
            data,
            method="bwnh",
            parameters={},
            seed=0,
            progress=lambda *_: None,
            frontier=frontier,
        )
    assert runs == dict.fromkeys(
        ("full norm", "full norm_two", "binarized norm", "binarized norm_two"), 1
    )


def test_a_network_that_cannot_be_traced_is_run_anew_for_every_layer() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.layer(x if x.sum() > 0 else -x)
            return result

    net, batch = Branching().eval(), -torch.rand(2, 3)
    frontier = Frontier(lambda: iter([batch]))
    with torch.no_grad():
        (fed,) = frontier.inputs(net, "layer")
    assert torch.equal(fed.input, -batch)
    assert frontier.block(net, "layer") is None


def test_the_end_of_a_residual_block_aims_at_the_blocks_result() -> None:
    net, data = SmallNet(2), images(2)
    assert Frontier(data.batches).block(net, "first") is None
    found = Frontier(data.batches).block(net, "second")
    assert found is not None and found.norm == "norm_two"
    own, block = (binarized(net, data, blocks=blocks) for blocks in (False, True))
    everything = torch.cat(list(data.batches()))

    def result(network: nn.Module) -> Tensor:
        with torch.no_grad():
            return torch.cat(
                [fed.input for fed in Frontier(lambda: iter([everything])).inputs(network, "last")]
            )

    wanted = result(net)
    assert (result(block) - wanted).square().mean() < 0.95 * (result(own) - wanted).square().mean()


def test_mirrored_images_follow_their_originals() -> None:
    plain = images(0, 150)
    both = replace(plain, mirror=True)
    assert len(both) == 300
    batches = list(both.batches())
    for one, other, original in zip(batches[::2], batches[1::2], plain.batches(), strict=True):
        assert torch.equal(one, original)
        assert torch.equal(other, original.flip(3))


def test_statistics_of_a_batch_norm_that_there_is_not_are_refused() -> None:
    net = SmallNet(4)
    mean = torch.full((16,), 7.0)
    load_norms(net, {"norm.running_mean": mean})
    assert torch.equal(net.norm.running_mean, mean)
    with pytest.raises(ValueError, match=r"no norm_three\.running_mean"):
        load_norms(net, {"norm_three.running_mean": mean})


def test_norms_behind_a_layer_are_estimated_with_it(tmp_path: Path) -> None:
    net, data = SmallNet(4), images(4)
    done = copy.deepcopy(net)
    frontier = Frontier(data.batches)
    for name in ("first", "second"):
        layer = calibration.calibrate_next(
            net,
            done,
            name,
            data,
            method="bwnh",
            parameters={"offset": True},
            seed=0,
            progress=lambda *_: None,
            recalibrate=True,
            frontier=frontier,
        )
        calibration.save_layer(layer, tmp_path / name)
    assert set(layer.norms) == {"norm_two.running_mean", "norm_two.running_var"}
    assert layer.offset is not None
    resumed = copy.deepcopy(net)
    for name in ("first", "second"):
        calibration.apply_layer(resumed, calibration.load_layer(tmp_path / name))
    for (name, one), other in zip(
        done.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    everything = torch.cat(list(data.batches()))
    with torch.no_grad():
        fed = done.first(everything)
        torch.testing.assert_close(done.norm.running_mean, fed.mean(dim=(0, 2, 3)))
        behind = done.second(done.norm(fed).relu())
        torch.testing.assert_close(done.norm_two.running_var, behind.var(dim=(0, 2, 3)))


def test_further_bases_stay_within_their_budget_and_survive_packing() -> None:
    net, data = SmallNet(6), images(6)
    weights = {"first": 432, "second": 2304, "last": 2880}
    wanted = {"bases": 3, "bases_above": 0.0, "bases_budget": 0.2}
    done = binarized(net, data, **wanted)
    bases = {name: done.get_submodule(name).bases for name in weights}
    # A fifth of 5616 weights: two more bases of the first layer, and then nothing else fits.
    assert bases == {"first": 3, "second": 1, "last": 1}
    plan, tensors = lower(done, (3, 12, 12))
    artifact = Artifact(plan, tensors, INPUT, tuple("abcde"), {}, {})
    batch = next(images(4).batches())
    with torch.no_grad():
        expected = done(batch)
    answered = load(artifact, "reference").run(batch)
    assert (answered - expected).abs().max() <= 1e-4 * expected.abs().max()
    plain = binarized(net, data, bases=1)
    batch = next(data.batches())
    wanted, several, one = (input_of(of, "norm", batch) for of in (net, done, plain))
    assert (several - wanted).square().sum() < 0.2 * (one - wanted).square().sum()


def test_the_default_bases_of_vgg9_leave_it_thirty_times_smaller() -> None:
    net = build("vgg9", channels=3, height=32, width=32, classes=10, parameters={}).eval()
    size = float32_bytes(net)
    layers = binarizable_layers(net)
    # What calibration gives its first three layers (docs/RESULTS.md), and all that fits.
    bases = dict(zip(layers, (3, 2, 2), strict=False))
    further = sum((k - 1) * layers[name].weight.numel() for name, k in bases.items())
    weights = sum(layer.weight.numel() for layer in layers.values())
    assert further <= specs.BwnhParameters().bases_budget * weights < further + 10_000
    for name, layer in layers.items():
        codes = torch.ones(bases.get(name, 1), *layer.weight.shape)
        binary = binarize_layer(layer, codes, torch.ones(codes.shape[:2]))
        replace_layer(net, name, binary)
    plan, tensors = lower(net, (3, 32, 32))
    told = {"spec": "x" * 1500, "digests": "x" * 200, "versions": "x" * 100}
    fed = InputSpec(3, 32, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    packed = encode(Artifact(plan, tensors, fed, tuple("abcdefghij"), told, {}))
    assert size / len(packed) >= 30.1
