"""What `benchmarks.accuracy` found, as a table and as flat figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from rich.console import Console
from rich.table import Table

from benchmarks.compression import console
from worker.training.trainer import EpochFigures

Runs = Mapping[str, Sequence["Run"]]

_FILE_WIDTH = 160
_HEADINGS = {
    "full_precision": "float",
    "calibrated": "calibrated",
    "fine_tuned": "tuned",
    "packed": "packed",
    "packed_float_activations": "float act.",
}


@dataclass(frozen=True)
class Run:
    """What one method gave with one seed.

    ``bits_per_weight`` are those of binary layers.
    ``accuracies`` are in 0..1 and by form, as in a job's report; ``losses`` are relative, by layer
    and sweep. Seconds of training are those of its epochs; memory is what calibration held at most.
    """

    seed: int
    accuracies: Mapping[str, float]
    ratio: float
    bits_per_weight: float
    calibration_seconds: float
    peak_mib: float
    losses: Mapping[str, tuple[float, ...]]
    fine_tuning_seconds: float
    epochs: tuple[EpochFigures, ...]

    def __str__(self) -> str:
        accuracies = [
            f"{name.replace('_', ' ')} {one:.4f}" for name, one in self.accuracies.items()
        ]
        return ", ".join(
            [
                *accuracies[1:],
                f"calibrated in {self.calibration_seconds:.1f} s",
                *([f"trained in {self.fine_tuning_seconds:.0f} s"] if self.epochs else []),
            ]
        )


def print_runs(runs: Runs) -> None:
    """Print the losses of the first seed, then the table of all methods."""
    for method, measured in runs.items():
        for layer, losses in measured[0].losses.items():
            if losses:
                shown = " ".join(f"{loss:.5f}" for loss in losses)
                console.print(f"{method} {layer}: {shown}", style="dim")
    forms = _forms(runs)
    table = Table()
    table.add_column("method", no_wrap=True)
    trained = any(run.epochs for measured in runs.values() for run in measured)
    more = (
        "spread",
        "drop, %",
        "bits",
        "ratio",
        "s",
        "MiB",
        *(("training, s", "images/s") * trained),
    )
    for heading in (*(_HEADINGS[form] for form in forms), *more):
        table.add_column(heading, justify="right", no_wrap=True)
    for method, measured in runs.items():
        spread = _spread(measured)
        drop = fmean(
            run.accuracies["full_precision"] - run.accuracies["packed"] for run in measured
        )
        table.add_row(
            method,
            *(f"{_mean(measured, form):.4f}" for form in forms),
            f"{spread:.4f}" if spread is not None else "-",
            f"{100 * drop:.2f}",
            f"{fmean(run.bits_per_weight for run in measured):.3f}",
            f"{measured[0].ratio:.2f}",
            f"{fmean(run.calibration_seconds for run in measured):.1f}",
            f"{max(run.peak_mib for run in measured):.0f}",
            *(_speed(measured) if trained else ()),
        )
    # A file has no width.
    wide = console if console.is_terminal else Console(width=_FILE_WIDTH)
    wide.print(table)


def figures(runs: Runs) -> dict[str, float]:
    """Return the flat map of the JSON record: means over the seeds, of memory the highest.

    Of several seeds there is also what each gave, and the standard deviation of the packed plans'
    accuracies as ``<method>.spread``.
    """
    every = [run for measured in runs.values() for run in measured]
    flat = {"full_precision": fmean(run.accuracies["full_precision"] for run in every)}
    for method, measured in runs.items():
        for form in _forms(runs)[1:]:
            flat[f"{method}.{form}"] = _mean(measured, form)
            if len(measured) > 1:
                for run in measured:
                    flat[f"{method}.{form}.seed{run.seed}"] = run.accuracies[form]
        spread = _spread(measured)
        if spread is not None:
            flat[f"{method}.spread"] = spread
        flat[f"{method}.bits_per_weight"] = fmean(run.bits_per_weight for run in measured)
        flat[f"{method}.ratio"] = fmean(run.ratio for run in measured)
        flat[f"{method}.calibration_seconds"] = fmean(run.calibration_seconds for run in measured)
        # The highest: a later run finds memory that an earlier one has left to the process.
        flat[f"{method}.peak_mib"] = max(run.peak_mib for run in measured)
        for layer, losses in measured[0].losses.items():
            for sweep, loss in enumerate(losses):
                flat[f"{method}.loss.{layer}.sweep{sweep}"] = loss
        flat |= _training_figures(method, measured)
    return flat


def _training_figures(method: str, measured: Sequence[Run]) -> dict[str, float]:
    if not measured[0].epochs:
        return {}
    flat = {
        f"{method}.fine_tuning_seconds": fmean(run.fine_tuning_seconds for run in measured),
        f"{method}.images_per_second": _images_per_second(measured),
    }
    for index in range(len(measured[0].epochs)):
        epochs = [run.epochs[index] for run in measured]
        name = f"{method}.epoch{index + 1}"
        flat[f"{name}.loss"] = fmean(epoch.loss for epoch in epochs)
        flat[f"{name}.train_accuracy"] = fmean(epoch.train_accuracy for epoch in epochs)
    return flat


def _speed(measured: Sequence[Run]) -> tuple[str, str]:
    seconds = fmean(run.fine_tuning_seconds for run in measured)
    return f"{seconds:.0f}", f"{_images_per_second(measured):.0f}"


def _forms(runs: Runs) -> list[str]:
    """Return the forms that every run was measured in, in their order."""
    return list(next(iter(runs.values()))[0].accuracies)


def _mean(measured: Sequence[Run], form: str) -> float:
    return fmean(run.accuracies[form] for run in measured)


def _spread(measured: Sequence[Run]) -> float | None:
    """Return the standard deviation of the packed plans' accuracies; None of a single one."""
    packed = [run.accuracies["packed"] for run in measured]
    return stdev(packed) if len(packed) > 1 else None


def _images_per_second(measured: Sequence[Run]) -> float:
    return fmean(epoch.images_per_second for run in measured for epoch in run.epochs)
