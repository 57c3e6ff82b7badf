"""The options of the paper's figures and tables, beside those that all commands share."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.paper.variants import VARIANTS
from benchmarks.paper.workloads import WORKLOADS

WorkloadName = Annotated[
    str, typer.Option("--workload", help="What to measure on: " + ", ".join(WORKLOADS) + ".")
]
Checkpoint = Annotated[
    Path | None, typer.Option(help="The full-precision network.", show_default="the workload's")
]
Dataset = Annotated[
    Path | None, typer.Option(help="A zip, tar or folder of images.", show_default="the workload's")
]
CalibrationCount = Annotated[
    int, typer.Option("--calibration-images", min=1, help="Unlabelled training images.")
]
Parameters = Annotated[
    list[str] | None,
    typer.Option("--parameter", metavar="KEY=VALUE", help="Of the method bwnh; repeatable."),
]
Validation = Annotated[
    bool,
    typer.Option(
        "--validation",
        help="Measure on the validation split, a part of train: for trying things out. Without it "
        "the test split is used, each network once.",
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(min=1, max=1000, help="Of fine-tuning, for every method.", show_default=False),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        help="In place of --epochs: as many as fit into so many minutes on this machine.",
        show_default=False,
    ),
]
Recipe = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="A member of the specification's fine_tune, such as learning_rate=0.002; repeatable.",
    ),
]
Methods = Annotated[str, typer.Option(help="Comma-separated, of: " + ", ".join(VARIANTS) + ".")]
Output = Annotated[Path, typer.Option("--output", help="Folder for page, plot and record.")]

OUTPUT = Path("docs/results")
