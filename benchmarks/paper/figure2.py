"""Figure 2, with and without fine-tuning: ``python -m benchmarks.paper.figure2``.

Binary networks that begin with the codes of BWNH, and such that begin with the signs of the weights
as BWN does, are fine-tuned under one budget: above, their accuracy on the validation split after
every epoch; below, what fine-tuning brings on the test split, which is used once for each network.
"""

from collections.abc import Sequence
from statistics import fmean

from benchmarks.options import CACHE, Cache, Seeds, Threads, run, seed_list
from benchmarks.paper import charts
from benchmarks.paper.comparison import (
    Accuracy,
    Budget,
    Run,
    about_bits,
    mean_accuracy,
    measured,
    run_variant,
)
from benchmarks.paper.options import (
    OUTPUT,
    CalibrationCount,
    Checkpoint,
    Dataset,
    Epochs,
    Methods,
    Minutes,
    Output,
    Recipe,
    Validation,
    WorkloadName,
)
from benchmarks.paper.results import Result, Table, percent, standard_error_note
from benchmarks.paper.variants import VARIANTS, Variant, chosen
from benchmarks.paper.workloads import Bench, about_split, find, load

Runs = dict[str, list[Run]]


def measure(
    bench: Bench,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    count: int,
    budget: Budget,
    split: str,
) -> Runs:
    """Return the runs of every variant, one for each seed; all are trained for as many epochs."""
    training = budget.fine_tuning(bench, seeds[0])
    found: Runs = {}
    for variant in variants:
        found[variant.key] = []
        for seed in seeds:
            members = {"seed": seed, "calibration_images": count, "fine_tune": training}
            found[variant.key].append(run_variant(bench, variant, members, split, every_epoch=True))
    return found


def full_precision(bench: Bench, seeds: Sequence[int], split: str) -> tuple[Accuracy, float]:
    """Return the float network's accuracy on the reported split, and that on validation.

    Where a split is the same for all seeds, as the test split that a dataset brings, it is looked
    at once.
    """
    means = [
        mean_accuracy(
            measured(bench, bench.network, images) for images in bench.different(seeds, name)
        )
        for name in (split, "validation")
    ]
    return means[0], means[1].top1


def result(
    bench: Bench,
    runs: Runs,
    full: tuple[Accuracy, float],
    seeds: Sequence[int],
    count: int,
    split: str,
) -> Result:
    """Return the page, the plot and the record of the runs."""
    reported, validation = full
    epochs = len(next(iter(runs.values()))[0].validation) - 1
    titles = {key: VARIANTS[key].title for key in runs}
    by_epoch = {
        key: list(zip(*(one.validation for one in of), strict=True)) for key, of in runs.items()
    }
    # A start near chance would press all else together: its line comes in from below.
    trained = [min(of) for points in by_epoch.values() for of in points[1:]]
    shown_from = max(min(trained) - 0.25 * (validation - min(trained)) - 0.01, 0.0)
    without = {key: fmean(one.calibrated.top1 for one in of) for key, of in runs.items()}
    with_it = {key: fmean(one.fine_tuned.top1 for one in of) for key, of in runs.items()}
    upper = charts.lines(
        [
            charts.Series(
                _from(titles[key], points[0], shown_from),
                range(epochs + 1),
                [100 * fmean(of) for of in points],
                [100 * min(of) for of in points],
                [100 * max(of) for of in points],
            )
            for key, points in by_epoch.items()
        ],
        title="While fine-tuning",
        x_label="epochs",
        y_label="accuracy, % of validation images",
        levels=[charts.Level("full precision", 100 * validation)],
        legend="beside",
        y_range=(100 * shown_from, None),
    )
    lower = charts.dots(
        charts.Dots(
            list(titles.values()),
            {
                "without fine-tuning": [100 * without[key] for key in runs],
                f"with {epochs} epoch{'s' if epochs > 1 else ''}": [
                    100 * with_it[key] for key in runs
                ],
            },
        ),
        title="In the end",
        x_label=f"accuracy, % of {split} images",
        level=charts.Level("full precision", 100 * reported.top1),
        x_range=(0, 112),
    )
    rows = [
        ("full precision", "-", percent(reported.top1), "-", "32", percent(validation), "-", "-")
    ]
    for key, of in runs.items():
        rows.append(
            (
                titles[key],
                percent(without[key]),
                percent(with_it[key]),
                percent(reported.top1 - with_it[key]),
                f"{fmean(one.bits_per_weight for one in of):.3f}",
                percent(fmean(one.validation[-1] for one in of)),
                percent(fmean(one.validation[1] for one in of)),
                f"{fmean(one.training_seconds for one in of) / 60:.1f}",
            )
        )
    figures = {"full_precision": reported.top1, "full_precision.validation": validation}
    for key in runs:
        figures[f"{key}.calibrated"] = without[key]
        figures[f"{key}.fine_tuned"] = with_it[key]
        figures[f"{key}.bits_per_weight"] = fmean(one.bits_per_weight for one in runs[key])
        figures[f"{key}.training_seconds"] = fmean(one.training_seconds for one in runs[key])
        for epoch, of_seeds in enumerate(by_epoch[key]):
            figures[f"{key}.validation.epoch{epoch}"] = fmean(of_seeds)
    return Result(
        name=f"figure2-{bench.workload.name}",
        title=f"Figure 2: with and without fine-tuning, {bench.workload.title}",
        caption=(
            f"Fine-tuning of binary networks from different starts, {epochs} epochs each under the "
            f"same recipe, calibrated on {count:,} unlabelled images. While it lasts accuracy is "
            f"that on the validation split; each network saw the {split} images once without and "
            "once with fine-tuning, and they chose nothing."
            + (f" {bits}" if (bits := about_bits(bench, runs)) else "")
            + (" Lines are means over the seeds, bands their range." if len(seeds) > 1 else ""),
            standard_error_note(len(bench.split(seeds[0], split)), reported.top1),
            *about_split(bench.workload, "validation"),
        ),
        table=Table(
            (
                "start",
                "without, %",
                "with, %",
                "drop, points",
                "bits per weight",
                "validation, last epoch, %",
                "validation, first epoch, %",
                "training, min",
            ),
            rows,
        ),
        figures=figures,
        seeds=seeds,
        draw=lambda file: charts.plot(
            file, (charts.HEIGHT_INCHES, upper), (1.2 + 0.5 * len(runs), lower)
        ),
    )


def _from(title: str, start: Sequence[float], shown_from: float) -> str:
    """Return a line's name, with its first value where the panel does not show it."""
    return title if min(start) >= shown_from else f"{title}\n(from {100 * fmean(start):.1f} %)"


def main(
    workload: WorkloadName = "vgg9-cifar10",
    checkpoint: Checkpoint = None,
    dataset: Dataset = None,
    methods: Methods = "bwnh,bwnh_as_published,bwn",
    epochs: Epochs = None,
    minutes: Minutes = None,
    recipe: Recipe = None,
    calibration_images: CalibrationCount = 500,
    seeds: Seeds = "0",
    validation: Validation = False,
    threads: Threads = 0,
    cache: Cache = CACHE,
    output: Output = OUTPUT,
) -> None:
    """Draw what fine-tuning brings, from the codes of BWNH and from signs. Default: one epoch."""
    numbers, split = seed_list(seeds), "validation" if validation else "test"
    variants = chosen(methods)
    bench = load(find(workload, checkpoint, dataset), cache)
    budget = Budget(epochs, minutes, recipe or ())
    runs = measure(bench, variants, numbers, calibration_images, budget, split)
    full = full_precision(bench, numbers, split)
    page = result(bench, runs, full, numbers, calibration_images, split)
    page.table.show()
    page.write(output)


if __name__ == "__main__":
    run(main, trains=True)
