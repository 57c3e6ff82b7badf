"""The options that the commands share, and how their mistakes are told."""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.compression import console
from benchmarks.paper.variants import VARIANTS
from benchmarks.paper.workloads import WORKLOADS
from store.errors import BitpressError
from worker.stage_process import TRAINING_ENVIRONMENT

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
Seeds = Annotated[str, typer.Option(help="Comma-separated; figures are means over them.")]
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
Threads = Annotated[int, typer.Option(min=0, help="0: as many as torch takes by itself.")]
Cache = Annotated[Path, typer.Option(help="Where decoded images are kept for the next time.")]
Output = Annotated[Path, typer.Option("--output", help="Folder for page, plot and record.")]

CACHE = Path("build/benchmarks")
OUTPUT = Path("docs/results")


def seed_list(text: str) -> list[int]:
    """Return ``0,1,2`` as numbers.

    Raises:
        typer.BadParameter: for anything else.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of seeds such as 0,1,2") from None


@contextmanager
def told() -> Iterator[None]:
    """Say what is wrong with what was asked for in one line, and exit with 1."""
    try:
        yield
    except BitpressError as error:
        console.print(f"{error.title}: {error.detail} {error.remedy or ''}", style="red")
        raise typer.Exit(1) from None


def run(command: Callable[..., Any], *, trains: bool = False) -> None:
    """Run ``command`` as the program of a module.

    What ``trains`` begins anew with the memory settings under which a job's stage of fine-tuning
    runs: the C library reads them at a process's start.
    """
    missing = {
        name: value for name, value in TRAINING_ENVIRONMENT.items() if name not in os.environ
    }
    if trains and missing:
        os.environ.update(missing)
        os.execv(sys.executable, sys.orig_argv)

    @functools.wraps(command)
    def program(*args: Any, **options: Any) -> None:
        if options.get("threads"):
            torch.set_num_threads(options["threads"])
        with told():
            command(*args, **options)

    typer.run(program)
