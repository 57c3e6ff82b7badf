"""What changed settings are worth: the command, on the digits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from numpy.typing import NDArray
from torch import nn
from typer.testing import CliRunner

from benchmarks import ablation
from benchmarks.ablation import UNCHANGED, Change, Judge, read_change, specifications
from benchmarks.compression import calibrate
from benchmarks.paper.workloads import Bench, find, load
from models.preprocessing import normalise
from store.errors import InvalidSpec

IMAGES = 100
NOTHING: Change = {"method": {}, "fine_tune": {}}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The digits and their network, trained on the spot."""
    return load(find("digits", None, None), tmp_path_factory.mktemp("cache"))


def test_a_change_names_members_of_method_and_fine_tune() -> None:
    assert read_change("method.bases=1; fine_tune.average=0.999;method.starts=sign,greedy") == {
        "method": {"bases": 1, "starts": ["sign", "greedy"]},
        "fine_tune": {"average": 0.999},
    }


@pytest.mark.parametrize(
    "text", ["bases=1", "input.height=3", "", "method", "method.bases=1; method.bases=2"]
)
def test_what_is_no_change_is_refused(text: str) -> None:
    with pytest.raises((InvalidSpec, typer.BadParameter)):
        read_change(text)


@pytest.mark.parametrize("change", ["method.basis=1", "fine_tune.average=2"])
def test_settings_are_checked_before_anything_is_loaded(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "load", lambda *_: pytest.fail("was loaded"))
    app = typer.Typer()
    app.command()(ablation.main)
    told = CliRunner().invoke(app, ["--workload", "digits", "--epochs", "1", "--change", change])
    assert isinstance(told.exception, InvalidSpec)


def test_a_change_of_a_training_that_is_not_asked_for_is_refused(bench: Bench) -> None:
    changes = {"it": read_change("fine_tune.average=0.9")}
    with pytest.raises(InvalidSpec, match="not asked for"):
        specifications(bench.workload, changes, {}, epochs=0)
    assert specifications(bench.workload, changes, {}, epochs=2)["it"].fine_tune is not None


def test_a_network_is_judged_as_numpy_judges_it(bench: Bench) -> None:
    images = bench.splits(0).val
    spec = bench.workload.spec({"name": "bwnh", "sweeps": 1}, calibration_images=IMAGES)
    network = calibrate(bench.network, bench.calibration_images(spec), spec).network
    judge = Judge(bench, images)
    found = judge(network)

    def log_softmax(one: nn.Module) -> NDArray[np.float64]:
        inputs = normalise(images.pixels(0, len(images)), bench.fed)
        with torch.inference_mode():
            logits = one(inputs).double().numpy()
        return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))

    wanted, answered = log_softmax(bench.network), log_softmax(network)
    rows = np.arange(len(images))
    assert found.accuracy == np.mean(answered.argmax(axis=1) == images.labels)
    assert found.cross_entropy == pytest.approx(-answered[rows, images.labels].mean(), rel=1e-4)
    divergence = (np.exp(wanted) * (wanted - answered)).sum(axis=1).mean()
    assert divergence > 1e-3
    assert found.divergence == pytest.approx(divergence, rel=1e-3)
    assert judge.full_precision.divergence == 0


@pytest.mark.slow
def test_the_command_measures_every_change_and_records_it(tmp_path: Path) -> None:
    file = tmp_path / "ablation.json"
    app = typer.Typer()
    app.command()(ablation.main)
    arguments = [
        *("--workload", "digits", "--calibration-images", str(IMAGES), "--epochs", "1"),
        *("--change", "method.sweeps=0; method.starts=[sign]"),
        *("--change", "fine_tune.learning_rate=1e-9"),
        *("--json", str(file)),
    ]
    told = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert told.exit_code == 0, told.output
    figures = json.loads(file.read_text())["figures"]

    def divergence(title: str, form: str) -> float:
        return float(figures[f"{title}.{form}.divergence"])

    signs, still = "method.sweeps=0; method.starts=[sign]", "fine_tune.learning_rate=1e-9"
    assert divergence(signs, "calibrated") > divergence(UNCHANGED, "calibrated")
    # The same calibration, and a training that changes no bit.
    assert divergence(still, "calibrated") == divergence(UNCHANGED, "calibrated")
    assert figures[f"{still}.calibration_seconds"] == figures[f"{UNCHANGED}.calibration_seconds"]
    assert figures[f"{still}.turned"] == 0 < figures[f"{UNCHANGED}.turned"] < 0.5
    lines = [line for line in told.output.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines] == [UNCHANGED, signs, still]
