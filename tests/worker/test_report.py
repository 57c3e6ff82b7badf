"""What an artifact says of where it comes from, and what a report adds to its accuracies."""

import json

import numpy as np
import pytest
import torch

from store.specs import parse_spec
from worker.evaluation import accuracy
from worker.report import answer_figures, layers_by_loss, provenance, training_provenance

SPEC = parse_spec(
    {
        "name": "digits",
        "architecture": "digits_cnn",
        "checkpoint": "sha256:" + "0" * 64,
        "dataset": "digits",
        "seed": 3,
    }
)


@pytest.mark.parametrize("threads", [1, 2])
def test_provenance_names_all_that_the_bytes_depend_on(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        origin = provenance(SPEC, {"dataset": "sha256:1"})
    finally:
        torch.set_num_threads(before)
    assert origin["threads"] == threads
    assert (origin["seed"], origin["digests"]) == (3, {"dataset": "sha256:1"})
    assert set(origin["versions"]) == {"bitpress", "torch", "numpy"}
    assert origin["spec"]["architecture"] == "digits_cnn"
    assert "checkpoint" not in origin["spec"]


def test_provenance_names_every_arithmetic_that_trained_once() -> None:
    on_cpu = {"device": "cpu", "products": "bfloat16"}
    on_gpu = {"device": "cuda", "products": "bfloat16"}
    epochs = [{"epoch": n, **of} for n, of in enumerate((on_gpu, on_cpu, on_gpu), 1)]
    assert training_provenance([], processes=2) == {}
    assert training_provenance(epochs[1:2], processes=1) == {"training": [on_cpu]}
    several = training_provenance(epochs, processes=2)
    assert several == {"training": [on_gpu, on_cpu], "training_processes": 2}


def test_layers_are_ranked_by_their_last_loss() -> None:
    layers = [
        {"name": "conv1", "losses": [0.3, 0.1]},
        {"name": "kept", "losses": []},
        {"name": "conv2", "losses": [0.2, 0.15]},
        {"name": "fc", "losses": [0.1]},
    ]
    assert layers_by_loss(layers) == [
        {"name": "conv2", "loss": 0.15},
        {"name": "conv1", "loss": 0.1},
        {"name": "fc", "loss": 0.1},
    ]


def test_the_figures_of_the_answers_agree_with_the_accuracies() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    logits = {
        form: (2 * np.eye(3)[labels] + rng.normal(size=(90, 3))).astype(np.float32)
        for form in ("full_precision", "calibrated", "packed")
    }
    figures = answer_figures(logits, labels, ("a", "b", "c"))
    assert set(figures) == {"classes", "confusion", "agreement", "confidence"}
    assert json.loads(json.dumps(figures, allow_nan=False))
    accuracies = {form: accuracy(found, labels) for form, found in logits.items()}
    assert set(figures["confidence"]) == set(logits)
    for form, expected in accuracies.items():
        right = sum(one["images"] * one["accuracy"][form] for one in figures["classes"])
        assert right == pytest.approx(90 * expected)
    change = accuracies["packed"] - accuracies["full_precision"]
    assert figures["agreement"]["change"] == pytest.approx(change)
