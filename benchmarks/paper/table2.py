"""Table 2, AlexNet on ImageNet: ``python -m benchmarks.paper.table2 --images FOLDER``.

The recipe is the paper's by default; ``--recipe`` sets other values.
"""

from benchmarks.options import CACHE, Cache, Seeds, Threads, run, seed_list
from benchmarks.paper.comparison import Budget
from benchmarks.paper.imagenet import (
    FullEpochs,
    FullPrecision,
    FullRate,
    Images,
    KeepFloat,
    Size,
    load_or_train,
    with_options,
)
from benchmarks.paper.options import (
    OUTPUT,
    CalibrationCount,
    Epochs,
    Methods,
    Minutes,
    Output,
    Recipe,
    Validation,
)
from benchmarks.paper.tables import Plan, make_table
from benchmarks.paper.variants import chosen
from benchmarks.paper.workloads import WORKLOADS


def main(
    images: Images,
    checkpoint: FullPrecision = None,
    full_precision_epochs: FullEpochs = None,
    full_precision_learning_rate: FullRate = 0.02,
    methods: Methods = "binary_connect,bwn,sq_bwn,hwgq_bwn,bwnh_as_published,bwnh",
    keep_float: KeepFloat = "features.0,classifier.8",
    size: Size = 224,
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
    """Compare the methods on AlexNet and ImageNet. Default: the paper's number of epochs."""
    plan = Plan(
        number=2,
        variants=chosen(methods),
        seeds=seed_list(seeds),
        calibration_images=calibration_images,
        budget=Budget(epochs, minutes),
        split="validation" if validation else "test",
        top5=True,
    )
    workload = with_options(
        WORKLOADS["alexnet-imagenet"], images, checkpoint, keep_float, size, recipe or ()
    )
    bench = load_or_train(workload, full_precision_epochs, full_precision_learning_rate, cache)
    make_table(bench, plan, output)


if __name__ == "__main__":
    run(main, trains=True)
