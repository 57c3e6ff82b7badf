"""How a specification becomes a training, and what of the trained network is kept."""

from typing import Any

import pytest
import torch
from torch import nn

from models.layers import binarize_layer
from store.specs import CompressSpec, parse_spec
from worker.fine_tuning import arithmetic_of, epoch_record, recipe_of
from worker.networks import finished_tensors, load_finished
from worker.training.trainer import EpochFigures


def spec(method: str = "bwnh", **fine_tune: Any) -> CompressSpec:
    named = {"name": "a", "architecture": "vgg9", "dataset": "b", "method": {"name": method}}
    return parse_spec({**named, "fine_tune": {"epochs": 2, **fine_tune}})


def test_a_recipe_says_what_the_specification_says() -> None:
    recipe = recipe_of(spec(optimizer="sgd", drops=[0.25], average=0.5))
    assert (recipe.epochs, recipe.optimizer, recipe.average) == (2, "sgd", 0.5)
    assert recipe.drops == (0.25,)
    assert recipe.binary_fractions is None


def test_stochastic_quantisation_has_its_fractions_without_being_told() -> None:
    assert recipe_of(spec("sq_bwn")).binary_fractions == (0.5, 0.75, 0.875, 1.0)
    assert recipe_of(spec("sq_bwn", binary_fractions=[0.9, 1])).binary_fractions == (0.9, 1.0)


def test_without_fine_tuning_there_is_no_recipe() -> None:
    with pytest.raises(ValueError, match="no fine-tuning"):
        recipe_of(parse_spec({"name": "a", "architecture": "vgg9", "dataset": "b"}))


def test_the_record_of_an_epoch_counts_from_one() -> None:
    record = epoch_record(1, EpochFigures(0.5, 0.75, 100.0, 2.0, 0.001))
    assert record == {
        "epoch": 1,
        "loss": 0.5,
        "train_accuracy": 0.75,
        "images_per_second": 100.0,
        "seconds": 2.0,
        "learning_rate": 0.001,
    }


@pytest.mark.parametrize("bfloat16", [False, True])
def test_what_auto_means_here_is_told(monkeypatch: pytest.MonkeyPatch, bfloat16: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags = {"avx512_bf16"} if bfloat16 else {"avx2"}
    monkeypatch.setattr("worker.training.precision._cpu_flags", lambda: flags)
    found = {"device": "cpu", "products": "bfloat16" if bfloat16 else "float32"}
    assert arithmetic_of(spec()) == found
    assert arithmetic_of(spec(precision="float32"))["products"] == "float32"
    assert arithmetic_of(spec(precision="bfloat16"))["products"] == "bfloat16"


@pytest.mark.parametrize("bases", [1, 3])
def test_a_finished_network_is_kept_as_codes_and_comes_back_as_it_was(bases: int) -> None:
    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        conv = nn.Conv2d(2, 3, 3)
        codes = torch.randint(0, 2, (bases, *conv.weight.shape)) * 2 - 1
        layers = (
            binarize_layer(conv, codes, torch.rand(bases, 3)),
            nn.BatchNorm2d(3),
            nn.Conv2d(3, 2, 1),
        )
        return nn.Sequential(*layers).eval()

    trained, calibrated = network(1), network(2)
    with torch.no_grad():
        # Latent weights, of which the signs alone count, and statistics that training moved.
        trained[0].weight.mul_(torch.rand_like(trained[0].weight) + 0.1)
        trained[1].running_mean.uniform_()
    tensors = finished_tensors(trained)
    assert tensors["0.weight"].dtype == torch.int8
    assert set(tensors["0.weight"].unique().tolist()) == {-1, 1}
    load_finished(calibrated, tensors)
    fed = torch.rand(4, 2, 5, 5)
    with torch.inference_mode():
        assert torch.equal(calibrated(fed), trained(fed))
    assert calibrated[0].weight.dtype == torch.float32
