"""Figure 3, accuracy with the first k layers binary: ``python -m benchmarks.paper.figure3``.

The layers are binarized in the order of execution, once with a scale for every filter and once
with signs alone; after each layer the network, whose other layers are still float, is evaluated:
all of these networks see the reported images. There is no fine-tuning.
"""

import copy
from collections.abc import Sequence
from statistics import fmean

from torch import nn

from benchmarks.compression import (
    binarize_next,
    console,
    layers_to_binarize,
    progress,
)
from benchmarks.options import CACHE, Cache, Seeds, Threads, run, seed_list
from benchmarks.paper import charts
from benchmarks.paper.comparison import measured
from benchmarks.paper.options import (
    OUTPUT,
    CalibrationCount,
    Checkpoint,
    Dataset,
    Output,
    Parameters,
    Validation,
    WorkloadName,
)
from benchmarks.paper.results import Result, Table, percent, standard_error_note
from benchmarks.paper.variants import bwnh_as_published
from benchmarks.paper.workloads import Bench, about_split, find, load
from store.specs import CompressSpec
from worker.frontier import Frontier

VARIANTS = {"with scale": True, "without scale": False}

# By variant and seed: accuracy in 0..1 with 0, 1, 2, ... layers binary.
Accuracies = dict[str, list[list[float]]]


def measure(
    bench: Bench, seeds: Sequence[int], count: int, parameters: Sequence[str], split: str
) -> Accuracies:
    """Return the accuracies of both variants, for each seed, on ``split`` of its splits."""
    found: Accuracies = {}
    for variant, scale in VARIANTS.items():
        found[variant] = []
        for seed in seeds:
            method = bwnh_as_published(parameters) | {"scale": scale}
            spec = bench.workload.spec(method, seed=seed, calibration_images=count)
            found[variant].append(_after_each_layer(bench, spec, split))
            console.print(
                f"{variant}, seed {seed}: " + " ".join(percent(one) for one in found[variant][-1])
            )
    return found


def _after_each_layer(bench: Bench, spec: CompressSpec, split: str) -> list[float]:
    images = bench.calibration_images(spec)
    judged = bench.split(spec.seed, split)

    def judge(network: nn.Module) -> float:
        return measured(bench, network, judged).top1

    binarized, frontier = copy.deepcopy(bench.network), Frontier(images.batches)
    accuracies = [judge(binarized)]
    for name in layers_to_binarize(bench.network, spec):
        with progress(f"layer {len(accuracies)}") as report:
            binarize_next(bench.network, binarized, name, images, spec, report, frontier)
        accuracies.append(judge(binarized))
    return accuracies


def result(
    bench: Bench, accuracies: Accuracies, seeds: Sequence[int], count: int, split: str
) -> Result:
    """Return the page, the plot and the record of the accuracies."""
    spec = bench.workload.spec(bwnh_as_published())
    names = layers_to_binarize(bench.network, spec)
    titles = bench.layer_titles(names)
    means = {variant: _by_layer(runs) for variant, runs in accuracies.items()}
    rows = []
    for k in range(len(names) + 1):
        last = f"{titles[names[k - 1]]} (`{names[k - 1]}`)" if k else "none"
        rows.append((last, str(k), *(percent(fmean(means[variant][k])) for variant in VARIANTS)))
    chance = 1 / len(bench.dataset.classes)
    full = fmean(means["with scale"][0])
    panel = charts.lines(
        [
            charts.Series(
                variant,
                range(len(by_layer)),
                [100 * fmean(of_seeds) for of_seeds in by_layer],
                [100 * min(of_seeds) for of_seeds in by_layer],
                [100 * max(of_seeds) for of_seeds in by_layer],
            )
            for variant, by_layer in means.items()
        ],
        title=bench.workload.title,
        x_label="binary from the input up to this layer",
        y_label=f"accuracy, % of {split} images",
        levels=(
            charts.Level("full precision", 100 * full),
            charts.Level("chance", 100 * chance),
        ),
        ticks=["none", *titles.values()],
        y_range=(0, 102),
    )
    images = len(bench.split(seeds[0], split))
    return Result(
        name=f"figure3-{bench.workload.name}",
        title=f"Figure 3: accuracy after the first k layers, {bench.workload.title}",
        caption=(
            f"Accuracy on the {split} images with all layers up to the named one binary and the "
            "others in full precision, before any fine-tuning; calibrated on "
            f"{count:,} unlabelled images, batch norm as it was. Without scale the filters are "
            "signs alone."
            + (" Lines are means over the seeds, bands their range." if len(seeds) > 1 else ""),
            standard_error_note(images, full),
            *about_split(bench.workload, split),
        ),
        table=Table(("last binary layer", "binary layers", *(f"{v}, %" for v in VARIANTS)), rows),
        figures={
            f"{variant.replace(' ', '_')}.layers{k}_accuracy": fmean(of_seeds)
            for variant, by_layer in means.items()
            for k, of_seeds in enumerate(by_layer)
        },
        seeds=seeds,
        draw=lambda file: charts.plot(file, (charts.HEIGHT_INCHES, panel)),
    )


def _by_layer(runs: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    return list(zip(*runs, strict=True))


def main(
    workload: WorkloadName = "vgg9-cifar10",
    checkpoint: Checkpoint = None,
    dataset: Dataset = None,
    calibration_images: CalibrationCount = 500,
    parameter: Parameters = None,
    seeds: Seeds = "0",
    validation: Validation = False,
    threads: Threads = 0,
    cache: Cache = CACHE,
    output: Output = OUTPUT,
) -> None:
    """Draw accuracy against the number of binary layers, with and without scales."""
    numbers, split = seed_list(seeds), "validation" if validation else "test"
    bench = load(find(workload, checkpoint, dataset), cache)
    found = measure(bench, numbers, calibration_images, parameter or (), split)
    page = result(bench, found, numbers, calibration_images, split)
    page.table.show()
    page.write(output)


if __name__ == "__main__":
    run(main)
