"""Figure 1, the loss of every layer against sweeps: ``python -m benchmarks.paper.figure1``.

The loss of a layer is the squared error of its responses to what it is fed in the binarized
network, over the energy of the full-precision responses (the paper's Eq. 13). A sweep is one pass
over all bits. At sweep 0 stand sign(w) and the scale mean|w|.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Annotated

import typer

from benchmarks.compression import calibrate
from benchmarks.options import CACHE, Cache, Seeds, Threads, run, seed_list
from benchmarks.paper import charts
from benchmarks.paper.options import (
    OUTPUT,
    CalibrationCount,
    Checkpoint,
    Dataset,
    Output,
    Parameters,
    WorkloadName,
)
from benchmarks.paper.results import Result, Table
from benchmarks.paper.variants import bwnh_as_published
from benchmarks.paper.workloads import Bench, find, load

# By layer, the loss at the start and after every sweep, mean over the seeds.
Losses = dict[str, list[float]]


def measure(bench: Bench, seeds: Sequence[int], count: int, parameters: Sequence[str]) -> Losses:
    """Calibrate once a seed; where a layer stopped early its last loss stands for the rest."""
    found: dict[str, list[tuple[float, ...]]] = {}
    for seed in seeds:
        spec = bench.workload.spec(
            bwnh_as_published(parameters), seed=seed, calibration_images=count
        )
        calibration = calibrate(bench.network, bench.calibration_images(spec), spec)
        for name, losses in calibration.losses.items():
            found.setdefault(name, []).append(losses)
    return {name: _mean(losses) for name, losses in found.items()}


def _mean(runs: Sequence[tuple[float, ...]]) -> list[float]:
    sweeps = max(map(len, runs))
    return [fmean(run[min(sweep, len(run) - 1)] for run in runs) for sweep in range(sweeps)]


def result(bench: Bench, losses: Losses, seeds: Sequence[int], count: int) -> Result:
    """Return the page, the plot and the record of the losses."""
    shown = [1, 2, 5]
    titles = bench.layer_titles(losses)
    rows = []
    for name, by_sweep in losses.items():
        at = [f"{by_sweep[min(sweep, len(by_sweep) - 1)]:.4f}" for sweep in (0, *shown, -1)]
        rows.append(
            (
                f"{titles[name]} (`{name}`)",
                *at,
                str(len(by_sweep) - 1),
                f"{by_sweep[-1] / by_sweep[0]:.3f}",
            )
        )
    headings = (
        "layer",
        "start",
        *(f"sweep {sweep}" for sweep in shown),
        "last",
        "sweeps",
        "last / start",
    )
    series = [charts.Series(titles[name], range(len(y)), y) for name, y in losses.items()]
    panel = charts.lines(
        series,
        title=bench.workload.title,
        x_label="sweeps over the layer's bits",
        y_label="squared error / energy of the responses",
        ordered=True,
        log=True,
        legend="beside",
    )
    return Result(
        name=f"figure1-{bench.workload.name}",
        title=f"Figure 1: loss against sweeps, {bench.workload.title}",
        caption=(
            "The squared error of each layer's responses over the energy of the full-precision "
            "responses, at the start (sign and mean magnitude of the weights) and after every "
            f"sweep over the bits. {count:,} unlabelled images, layers in the order of execution, "
            "each with all layers before it binary. A line ends where no bit changed any more, or "
            "where the sweeps were used up.",
            "The responses are those to the calibration images themselves. Where a layer sees "
            "fewer samples than it has inputs, as a linear layer does that sees one an image, a "
            "low loss says little of other images.",
        ),
        table=Table(headings, rows),
        figures={
            f"{name}.sweep{sweep}_loss": loss
            for name, by_sweep in losses.items()
            for sweep, loss in enumerate(by_sweep)
        },
        seeds=seeds,
        draw=lambda file: charts.plot(file, (charts.HEIGHT_INCHES, panel)),
    )


def main(
    workload: WorkloadName = "vgg9-cifar10",
    checkpoint: Checkpoint = None,
    dataset: Dataset = None,
    sweeps: Annotated[int, typer.Option(min=1, max=100, help="Most sweeps over a layer.")] = 20,
    calibration_images: CalibrationCount = 500,
    parameter: Parameters = None,
    seeds: Seeds = "0",
    threads: Threads = 0,
    cache: Cache = CACHE,
    output: Output = OUTPUT,
) -> None:
    """Draw the loss of every layer against the sweeps over its bits."""
    numbers = seed_list(seeds)
    bench = load(find(workload, checkpoint, dataset), cache)
    losses = measure(bench, numbers, calibration_images, [f"sweeps={sweeps}", *(parameter or ())])
    page = result(bench, losses, numbers, calibration_images)
    page.table.show()
    page.write(output)


if __name__ == "__main__":
    run(main)
