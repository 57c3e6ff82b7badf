"""What each setting of a compression is worth: ``python -m benchmarks.ablation --help``.

A network is compressed as a job does it by default, and once more for every change that is asked
for. All are judged on the validation split, by accuracy, by the cross-entropy of the labels and by
the divergence from the full-precision network's answers: KL(full precision || compressed) in nats,
which tells small differences that accuracy does not. The test split is never looked at.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import torch
import typer
from torch import nn
from torch.nn import functional

from benchmarks.compression import Calibration, calibrate, console, fine_tune
from benchmarks.options import CACHE, Cache, Json, Threads, run
from benchmarks.paper.comparison import answers
from benchmarks.paper.options import CalibrationCount, Checkpoint, Dataset, WorkloadName
from benchmarks.paper.results import Table, percent
from benchmarks.paper.workloads import Bench, Workload, about_split, find, load
from benchmarks.record import write_record
from client.commands.options import pairs
from models.binarize import sign
from models.layers import BinaryConv2d, BinaryLinear
from store.errors import InvalidSpec
from store.specs import CompressSpec
from worker.data import ImageSet
from worker.evaluation import Logits, accuracy
from worker.training.distillation import logit_distance

UNCHANGED = "unchanged"
_PARTS = ("method", "fine_tune")

# What a change sets: members of a specification's `method` and of its `fine_tune`.
Change = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Judgement:
    """What a split says of a network: accuracy in 0..1, cross-entropy and divergence in nats."""

    accuracy: float
    cross_entropy: float
    divergence: float

    def __str__(self) -> str:
        """Return the three in the order of the table."""
        return f"{self.accuracy:.4f}, CE {self.cross_entropy:.4f}, KL {self.divergence:.4f}"


@dataclass(frozen=True)
class Row:
    """What one change came to; a part of it that was not asked for is absent.

    ``turned`` is the share of all bits, in 0..1, that training changed.
    """

    calibrated: Judgement
    calibration_seconds: float
    tuned: Judgement | None = None
    training_seconds: float = 0.0
    turned: float = 0.0


class Judge:
    """Judges networks on one split, against the full-precision network's answers."""

    def __init__(self, bench: Bench, images: ImageSet) -> None:
        """Ask the full-precision network about all ``images``."""
        self._bench, self._images = bench, images
        self._wanted = answers(bench, bench.network, images)
        self.full_precision = self._judged(self._wanted)

    def __call__(self, network: nn.Module) -> Judgement:
        """Return what the split says of ``network``, which stays as it is."""
        return self._judged(answers(self._bench, network, self._images))

    def _judged(self, logits: Logits) -> Judgement:
        labels = self._images.labels
        found, wanted = (torch.from_numpy(one).double() for one in (logits, self._wanted))
        return Judgement(
            accuracy=accuracy(logits, labels),
            cross_entropy=float(functional.cross_entropy(found, torch.from_numpy(labels))),
            divergence=float(logit_distance(found, wanted, temperature=1.0)),
        )


def read_change(text: str) -> Change:
    """Return ``method.bases=1; fine_tune.average=0.999`` by part and member.

    Raises:
        InvalidSpec: a member is not one of `method` or `fine_tune`.
        typer.BadParameter: a value is missing, or a member comes twice.
    """
    texts: dict[str, list[str]] = {part: [] for part in _PARTS}
    for one in text.split(";"):
        part, _, member = one.strip().partition(".")
        if part not in texts:
            raise InvalidSpec(
                f"{one.strip()!r} is not a member of {' or '.join(_PARTS)}.",
                field="--change",
                remedy="Write it as method.bases=1 or fine_tune.average=0.999.",
            )
        texts[part].append(member)
    return {part: pairs(members) for part, members in texts.items()}


def specifications(
    workload: Workload, changes: Mapping[str, Change], members: Mapping[str, Any], epochs: int
) -> dict[str, CompressSpec]:
    """Return the specification of every change; all are checked before anything is measured.

    Raises:
        InvalidSpec: a setting is not allowed, or would change nothing as there is no training.
    """
    found = {}
    for title, change in changes.items():
        if change["fine_tune"] and not epochs:
            raise InvalidSpec(
                f"{title!r} changes a training that is not asked for.",
                field="--change",
                remedy="Give --epochs.",
            )
        training = {**workload.fine_tune, "epochs": epochs, **change["fine_tune"]}
        found[title] = workload.spec(
            {"name": "bwnh", **change["method"]},
            **members,
            **({"fine_tune": training} if epochs else {}),
        )
    return found


def measure(
    bench: Bench, specs: Mapping[str, CompressSpec], judge: Judge
) -> Iterator[tuple[str, Row]]:
    """Compress by one specification after the other; equal calibrations are made once."""
    known: list[tuple[CompressSpec, Calibration, Judgement]] = []
    for title, spec in specs.items():
        same = next((one for one in known if one[0].method == spec.method), None)
        if same is None:
            made = calibrate(bench.network, bench.calibration_images(spec), spec)
            same = (spec, made, judge(made.network))
            known.append(same)
        _, calibration, judgement = same
        row = Row(judgement, calibration.seconds)
        if spec.fine_tune is not None:
            train = bench.splits(spec.seed).train
            trained = fine_tune(bench.network, calibration.network, train, spec, title=title)
            row = replace(
                row,
                tuned=judge(trained.network),
                training_seconds=trained.seconds,
                turned=turned_bits(calibration.network, trained.network),
            )
        yield title, row


def turned_bits(calibrated: nn.Module, trained: nn.Module) -> float:
    """Return the share of all bits in 0..1 that differ; those of further bases are not counted."""
    after = dict(trained.named_modules())
    count = turned = 0
    for name, layer in calibrated.named_modules():
        if isinstance(layer, BinaryConv2d | BinaryLinear):
            other = after[name]
            assert isinstance(other, BinaryConv2d | BinaryLinear)
            count += layer.weight.numel()
            turned += int((sign(layer.weight) != sign(other.weight)).sum())
    return turned / count if count else 0.0


def table_of(rows: Mapping[str, Row], full_precision: Judgement) -> Table:
    """Return a line for every change, the full-precision network's first."""
    trained = any(row.tuned is not None for row in rows.values())
    headings = ["change", "calibrated", "CE", "KL", "s"]
    headings += ["tuned", "CE", "KL", "s", "bits turned"] if trained else []
    lines = [["full precision", *_cells(full_precision), *["-"] * (len(headings) - 4)]]
    for title, row in rows.items():
        line = [f"`{title}`", *_cells(row.calibrated), f"{row.calibration_seconds:.0f}"]
        if row.tuned is not None:
            line += [*_cells(row.tuned), f"{row.training_seconds:.0f}", percent(row.turned)]
        lines.append(line)
    return Table(headings, lines)


def figures_of(rows: Mapping[str, Row], full_precision: Judgement) -> dict[str, float]:
    """Return the flat map of the record: ``<change>.tuned.divergence`` and so on."""
    found = {f"full_precision.{name}": one for name, one in asdict(full_precision).items()}
    for title, row in rows.items():
        for form, judgement in (("calibrated", row.calibrated), ("tuned", row.tuned)):
            if judgement is not None:
                found |= {f"{title}.{form}.{name}": one for name, one in asdict(judgement).items()}
        found[f"{title}.calibration_seconds"] = row.calibration_seconds
        if row.tuned is not None:
            found[f"{title}.training_seconds"] = row.training_seconds
            found[f"{title}.turned"] = row.turned
    return found


def _cells(judgement: Judgement) -> list[str]:
    return [
        percent(judgement.accuracy),
        f"{judgement.cross_entropy:.4f}",
        f"{judgement.divergence:.4f}",
    ]


def main(
    change: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART.KEY=VALUE[; ...]",
            help="A line of the table: members of the specification's method or fine_tune; "
            "repeatable.",
        ),
    ] = None,
    workload: WorkloadName = "half-vgg9-cifar10",
    checkpoint: Checkpoint = None,
    dataset: Dataset = None,
    calibration_images: CalibrationCount = 500,
    epochs: Annotated[int, typer.Option(min=0, max=1000, help="0: no fine-tuning.")] = 0,
    unchanged: Annotated[
        bool, typer.Option(help="Measure the defaults as well, as the first line.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Threads = 0,
    cache: Cache = CACHE,
    json: Json = None,
) -> None:
    """Measure what changed settings are worth, on the validation split."""
    changes: dict[str, Change] = {UNCHANGED: {part: {} for part in _PARTS}} if unchanged else {}
    changes |= {text: read_change(text) for text in change or ()}
    found = find(workload, checkpoint, dataset)
    members = {"seed": seed, "calibration_images": calibration_images}
    specs = specifications(found, changes, members, epochs)
    bench = load(found, cache)
    judge = Judge(bench, bench.splits(seed).val)
    rows: dict[str, Row] = {}
    for title, row in measure(bench, specs, judge):
        rows[title] = row
        console.print(f"{title}: {row.tuned or row.calibrated}", markup=False)
        if json is not None:  # a long run that is broken off has not been for nothing
            write_record(json, seed=seed, figures=figures_of(rows, judge.full_precision))
    table_of(rows, judge.full_precision).show()
    for line in about_split(found, "validation"):
        console.print(line)


if __name__ == "__main__":
    run(main, trains=True)
