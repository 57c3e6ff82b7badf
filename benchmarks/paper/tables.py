"""The tables: every method beside the others, under one budget of fine-tuning."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

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
from benchmarks.paper.results import Result, Table, percent, standard_error_note
from benchmarks.paper.variants import FULL_PRECISION, PUBLISHED, VARIANTS, Variant
from benchmarks.paper.workloads import Bench, about_split

Runs = dict[str, list[Run]]

_ABOUT_PUBLISHED = (
    "The published columns are the paper's, of other images, longer training and partly other "
    "layers in float: compare drops, not accuracies. "
)


@dataclass(frozen=True)
class Plan:
    """What a table is made of: ``number`` is the paper's, ``split`` the one that is reported."""

    number: int
    variants: Sequence[Variant]
    seeds: Sequence[int]
    calibration_images: int
    budget: Budget
    split: str
    top5: bool = False


def make_table(bench: Bench, plan: Plan, output: Path) -> None:
    """Measure every method of a plan and write the table.

    It is written anew after each method: hours of work are not lost with the last row.
    """
    seeds, variants = plan.seeds, plan.variants
    full = mean_accuracy(
        measured(bench, bench.network, images) for images in bench.different(seeds, plan.split)
    )
    training = plan.budget.fine_tuning(bench, seeds[0])
    members = {"calibration_images": plan.calibration_images, "fine_tune": training}
    runs: Runs = {}
    for variant in variants:
        runs[variant.key] = [
            run_variant(bench, variant, {**members, "seed": seed}, plan.split) for seed in seeds
        ]
        page = result(bench, plan, runs, full)
        page.write(output)
    page.table.show()


def result(bench: Bench, plan: Plan, runs: Runs, full: Accuracy) -> Result:
    """Return the page, the plot and the record of the runs so far."""
    workload = bench.workload
    images = len(bench.split(plan.seeds[0], plan.split))
    epochs = next(iter(runs.values()))[0].epochs
    kept = ", ".join(f"`{name}`" for name in workload.keep_float)
    return Result(
        name=f"table{plan.number}-{workload.name}",
        title=f"Table {plan.number}: {workload.title}",
        caption=(
            f"Accuracy on {images:,} {plan.split} images. Every method is trained for {epochs} "
            f"epoch{'s' if epochs > 1 else ''} under the same recipe, from weights calibrated on "
            f"{plan.calibration_images:,} unlabelled images where the method calibrates. "
            + (f"In float stay {kept}. " if kept else "All layers are binary. ")
            + (f"{bits} " if (bits := about_bits(bench, runs)) else "")
            + "Nothing was chosen by these images; each network saw them once. "
            + _about(plan.seeds),
            (_ABOUT_PUBLISHED if workload.name in PUBLISHED else "")
            + standard_error_note(images, full.top1),
            *about_split(workload, plan.split),
        ),
        table=_table(workload.name, runs, full, plan.top5),
        figures=_figures(runs, full),
        seeds=plan.seeds,
        draw=lambda file: charts.plot(
            file, (1.4 + 0.45 * len(runs), _panel(workload.title, runs, full, plan.split))
        ),
    )


def _about(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return "One seed: differences of less than two standard errors mean nothing."
    return "Means over the seeds; the spread is the largest less the smallest."


def _table(workload: str, runs: Runs, full: Accuracy, top5: bool) -> Table:
    columns: dict[str, list[str]] = {
        "method": ["full precision"],
        "calibrated, %": ["-"],
        "fine-tuned, %": [percent(full.top1)],
        "spread": ["-"],
        "drop, points": ["-"],
        "bits per weight": ["32"],
        "top 5, %": [percent(full.top5)],
        "published, %": [_published(workload, FULL_PRECISION)],
        "published drop": ["-"],
        "calibration, s": ["-"],
        "training, min": ["-"],
    }
    for key, of in runs.items():
        accuracies = [run.fine_tuned.top1 for run in of]
        spread = max(accuracies) - min(accuracies)
        columns["method"].append(VARIANTS[key].title)
        columns["calibrated, %"].append(percent(fmean(run.calibrated.top1 for run in of)))
        columns["fine-tuned, %"].append(percent(fmean(accuracies)))
        columns["spread"].append(percent(spread) if len(of) > 1 else "-")
        columns["drop, points"].append(percent(full.top1 - fmean(accuracies)))
        columns["bits per weight"].append(f"{fmean(run.bits_per_weight for run in of):.3f}")
        columns["top 5, %"].append(percent(fmean(run.fine_tuned.top5 for run in of)))
        columns["published, %"].append(_published(workload, key))
        columns["published drop"].append(_published_drop(workload, key))
        columns["calibration, s"].append(f"{fmean(run.calibration_seconds for run in of):.1f}")
        columns["training, min"].append(f"{fmean(run.training_seconds for run in of) / 60:.1f}")
    if not top5:
        del columns["top 5, %"]
    if workload not in PUBLISHED:
        del columns["published, %"], columns["published drop"]
    return Table(list(columns), list(zip(*columns.values(), strict=True)))


def _published(workload: str, key: str) -> str:
    accuracies = PUBLISHED.get(workload, {}).get(key)
    if accuracies is None:
        return "-"
    top1, top5 = accuracies
    return f"{top1:g}" if top5 is None else f"{top1:g} / {top5:g}"


def _published_drop(workload: str, key: str) -> str:
    rows = PUBLISHED.get(workload, {})
    if key not in rows or FULL_PRECISION not in rows:
        return "-"
    return f"{rows[FULL_PRECISION][0] - rows[key][0]:.2f}"


def _figures(runs: Runs, full: Accuracy) -> dict[str, float]:
    figures = {"full_precision": full.top1, "full_precision.top5": full.top5}
    for key, of in runs.items():
        figures[f"{key}.bits_per_weight"] = fmean(run.bits_per_weight for run in of)
        figures[f"{key}.epochs"] = float(of[0].epochs)
        figures[f"{key}.calibrated"] = fmean(run.calibrated.top1 for run in of)
        figures[f"{key}.fine_tuned"] = fmean(run.fine_tuned.top1 for run in of)
        figures[f"{key}.fine_tuned.top5"] = fmean(run.fine_tuned.top5 for run in of)
        figures[f"{key}.calibration_seconds"] = fmean(run.calibration_seconds for run in of)
        figures[f"{key}.training_seconds"] = fmean(run.training_seconds for run in of)
        if len(of) > 1:
            accuracies = [run.fine_tuned.top1 for run in of]
            figures[f"{key}.spread"] = max(accuracies) - min(accuracies)
            for index, run in enumerate(of):
                figures[f"{key}.fine_tuned.run{index}"] = run.fine_tuned.top1
    return figures


def _panel(title: str, runs: Runs, full: Accuracy, split: str) -> charts.Panel:
    kind = "fine-tuned"
    accuracies = {key: [100 * run.fine_tuned.top1 for run in of] for key, of in runs.items()}
    return charts.dots(
        charts.Dots(
            [VARIANTS[key].title for key in runs],
            {kind: [fmean(of) for of in accuracies.values()]},
            {kind: [min(of) for of in accuracies.values()]},
            {kind: [max(of) for of in accuracies.values()]},
        ),
        title=title,
        x_label=f"accuracy after fine-tuning, % of {split} images",
        level=charts.Level("full precision", 100 * full.top1),
    )
