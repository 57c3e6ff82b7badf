"""What the comparisons share: calibrate and fine-tune one method, under one budget for all."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from benchmarks.compression import (
    bases_of,
    bits_per_weight,
    calibrate,
    console,
    fine_tune,
    layers_to_binarize,
    progress,
)
from benchmarks.paper.variants import VARIANTS, Variant
from benchmarks.paper.workloads import Bench
from client.commands.options import pairs
from models.lowering import lower
from worker.data import ImageSet
from worker.evaluation import accuracy, predict_logits
from worker.forms import channels_last

# Of a probe, the images that the second epoch is timed on; the first one warms up.
_PROBE_STEPS = 16


@dataclass(frozen=True)
class Accuracy:
    """Shares in 0..1 of images whose label has the largest logit, or one of the five largest."""

    top1: float
    top5: float


@dataclass(frozen=True)
class Budget:
    """How long every method is trained: epochs, or the minutes that they may take."""

    epochs: int | None
    minutes: float | None
    recipe: Sequence[str] = ()

    def fine_tuning(self, bench: Bench, seed: int) -> dict[str, Any]:
        """Return the member ``fine_tune`` of every method's specification.

        Minutes become the number of whole epochs that fit into them, at least one, by the speed
        of a short training: all methods get the same number.
        """
        members = {**bench.workload.fine_tune, **pairs(self.recipe)}
        if self.epochs is not None:
            return {**members, "epochs": self.epochs}
        if self.minutes is None:
            return {"epochs": 1, **members}
        seconds = _epoch_seconds(bench, seed, members)
        epochs = max(math.floor(60 * self.minutes / seconds), 1)
        console.print(f"{epochs} epochs of about {seconds:.0f} s in {self.minutes:g} minutes")
        return {**members, "epochs": epochs}


@dataclass(frozen=True)
class Run:
    """What one method came to with one seed, on the split that is reported.

    ``validation`` has the accuracy on the validation split after calibration and every epoch,
    where it was asked for. ``bits_per_weight`` are those of binary layers, and ``bases`` has the
    layers with more than one basis.
    """

    calibrated: Accuracy
    fine_tuned: Accuracy
    validation: tuple[float, ...]
    epochs: int
    calibration_seconds: float
    training_seconds: float
    bits_per_weight: float
    bases: Mapping[str, int]


def run_variant(
    bench: Bench,
    variant: Variant,
    spec_members: Mapping[str, Any],
    split: str,
    *,
    every_epoch: bool = False,
) -> Run:
    """Calibrate and fine-tune by one method; ``spec_members`` are as of `Workload.spec`.

    The images of ``split`` are looked at twice: for the calibrated and for the final network.
    """
    spec = bench.workload.spec(variant.method, **spec_members)
    splits = bench.splits(spec.seed)
    reported = bench.split(spec.seed, split)
    calibration = calibrate(bench.network, bench.calibration_images(spec), spec)

    def judge(network: nn.Module) -> float:
        return measured(bench, network, splits.val).top1

    start = (judge(calibration.network),) if every_epoch else ()
    trained = fine_tune(
        bench.network,
        calibration.network,
        splits.train,
        spec,
        title=variant.title,
        judge=judge if every_epoch else None,
    )
    plan, _ = lower(trained.network, bench.fed.shape)
    run = Run(
        calibrated=measured(bench, calibration.network, reported),
        fine_tuned=measured(bench, trained.network, reported),
        validation=(*start, *trained.judged),
        epochs=len(trained.epochs),
        calibration_seconds=calibration.seconds,
        training_seconds=trained.seconds,
        bits_per_weight=bits_per_weight(plan),
        bases=bases_of(calibration.network),
    )
    console.print(
        f"{variant.title}, seed {spec.seed}: calibrated {run.calibrated.top1:.4f}, "
        f"fine-tuned {run.fine_tuned.top1:.4f}"
    )
    return run


def about_bits(bench: Bench, runs: Mapping[str, Sequence[Run]]) -> str:
    """Return a sentence on the methods that have more than one bit for some weights, or ''."""
    layers = layers_to_binarize(bench.network, bench.workload.spec({"name": "bwn"}))
    titles = bench.layer_titles(layers)
    found = []
    for key, of in runs.items():
        most = {name: max(run.bases.get(name, 1) for run in of) for name in layers}
        further = [f"{titles[name]} ({count})" for name, count in most.items() if count > 1]
        if further:
            found.append(f"{VARIANTS[key].title} has several bases in {', '.join(further)}")
    return "One bit for every binary weight, but: " + "; ".join(found) + "." if found else ""


def answers(bench: Bench, network: nn.Module, images: ImageSet) -> NDArray[np.float32]:
    """Return the logits ``(N, K)`` of a network, which stays as it is, on some images."""
    with progress("evaluating") as report:
        return predict_logits(
            channels_last(copy.deepcopy(network)),
            images,
            bench.fed,
            report,
            batch_images=bench.batch_images,
        )


def measured(bench: Bench, network: nn.Module, images: ImageSet) -> Accuracy:
    """Return the accuracy of a network on some images."""
    logits = answers(bench, network, images)
    return Accuracy(accuracy(logits, images.labels), in_largest(logits, images.labels, 5))


def mean_accuracy(accuracies: Iterable[Accuracy]) -> Accuracy:
    """Return the mean of some accuracies."""
    found = list(accuracies)
    return Accuracy(fmean(one.top1 for one in found), fmean(one.top5 for one in found))


def in_largest(logits: NDArray[np.float32], labels: NDArray[np.int64], count: int) -> float:
    """Return the share of images, in 0..1, whose label is among the ``count`` largest logits.

    Equal logits count in the order of the classes.
    """
    own = logits[np.arange(len(labels)), labels][:, None]
    before = np.arange(logits.shape[1]) < labels[:, None]
    rank = (logits > own).sum(axis=1) + ((logits == own) & before).sum(axis=1)
    return float((rank < count).mean())


def _epoch_seconds(bench: Bench, seed: int, members: Mapping[str, Any]) -> float:
    """Return what an epoch of training takes, by a short one of signs without calibration."""
    two_epochs = {**members, "epochs": 2, "settle_epochs": 0}
    spec = bench.workload.spec(
        VARIANTS["bwn"].method, seed=seed, calibration_images=2, fine_tune=two_epochs
    )
    assert spec.fine_tune is not None
    train = bench.splits(seed).train
    few = replace(train, rows=train.rows[: _PROBE_STEPS * spec.fine_tune.batch_size])
    calibrated = calibrate(bench.network, bench.calibration_images(spec), spec).network
    trained = fine_tune(bench.network, calibrated, few, spec, title="a short training")
    return len(train) / trained.epochs[-1].images_per_second
