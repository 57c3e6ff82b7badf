"""Table 1, the methods on CIFAR under one budget: ``python -m benchmarks.paper.table1``.

CIFAR-100 is measured by ``--workload vgg9-cifar100`` with ``--dataset`` and ``--checkpoint``.
"""

from benchmarks.options import CACHE, Cache, Seeds, Threads, run, seed_list
from benchmarks.paper.comparison import Budget
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
from benchmarks.paper.tables import Plan, make_table
from benchmarks.paper.variants import chosen
from benchmarks.paper.workloads import find, load


def main(
    workload: WorkloadName = "vgg9-cifar10",
    checkpoint: Checkpoint = None,
    dataset: Dataset = None,
    methods: Methods = "binary_connect,bwn,sq_bwn,hwgq_bwn,bwnh_as_published,bwnh",
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
    """Compare the methods under the same budget of fine-tuning. Default: one epoch."""
    plan = Plan(
        number=1,
        variants=chosen(methods),
        seeds=seed_list(seeds),
        calibration_images=calibration_images,
        budget=Budget(epochs, minutes, recipe or ()),
        split="validation" if validation else "test",
    )
    make_table(load(find(workload, checkpoint, dataset), cache), plan, output)


if __name__ == "__main__":
    run(main, trains=True)
