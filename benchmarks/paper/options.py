"""The options that the commands share, and how their mistakes are told."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.compression import console
from benchmarks.paper.workloads import WORKLOADS
from store.errors import BitpressError

WorkloadName = Annotated[
    str, typer.Option("--workload", help="What to measure on: " + ", ".join(WORKLOADS) + ".")
]
Checkpoint = Annotated[
    Path | None, typer.Option(help="The full-precision network.", show_default="the workload's")
]
Dataset = Annotated[
    Path | None, typer.Option(help="A zip or tar of images.", show_default="the workload's")
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


def run(command: Callable[..., Any]) -> None:
    """Run ``command`` as the program of a module."""

    @functools.wraps(command)
    def program(*args: Any, **options: Any) -> None:
        if options.get("threads"):
            torch.set_num_threads(options["threads"])
        with told():
            command(*args, **options)

    typer.run(program)
