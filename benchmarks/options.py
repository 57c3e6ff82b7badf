"""The options that the commands share, and how their mistakes are told."""

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.compression import console
from client.commands.options import numbers, pairs
from store.errors import BitpressError
from worker.stage_process import TRAINING_ENVIRONMENT

KeyValues = list[str] | None

# The network and the archive that a command is given in full.
Architecture = Annotated[str, typer.Option(help="A registered architecture.")]
ArchitectureParameters = Annotated[
    KeyValues,
    typer.Option("--architecture-parameter", metavar="KEY=VALUE", help="Repeatable."),
]
Checkpoint = Annotated[Path, typer.Option(exists=True, dir_okay=False)]
Archive = Annotated[
    Path, typer.Option("--dataset", exists=True, dir_okay=False, help="A zip or tar.")
]
Mean = Annotated[str, typer.Option(help="Of the pixels, by channel.")]
Std = Annotated[str, typer.Option(help="Of the pixels, by channel.")]
ValueRange = Annotated[str, typer.Option(help="What 0..255 becomes first.")]
Size = Annotated[int, typer.Option(help="Height and width of the input.")]
Channels = Annotated[int, typer.Option()]
KeepFloat = Annotated[str, typer.Option(help="Comma-separated layer names.")]

Seeds = Annotated[str, typer.Option(help="Comma-separated; figures are means over them.")]
Threads = Annotated[int, typer.Option(min=0, help="0: as many as torch takes by itself.")]
Cache = Annotated[Path, typer.Option(help="Where decoded images are kept for the next time.")]
Json = Annotated[Path | None, typer.Option(help="Where to write the figures.")]

CACHE = Path("build/benchmarks")


def network_members(
    architecture: str,
    parameters: Sequence[str] | None,
    *,
    channels: int,
    size: int,
    value_range: str,
    mean: str,
    std: str,
) -> dict[str, Any]:
    """Return what the options above say of a network, as members of a specification.

    Raises:
        typer.BadParameter: one is not written as it has to be.
    """
    return {
        "name": "benchmark",
        "dataset": "benchmark",
        "architecture": architecture,
        "architecture_parameters": pairs(parameters or ()),
        "input": {
            "channels": channels,
            "value_range": numbers(value_range),
            "height": size,
            "width": size,
            "mean": numbers(mean),
            "std": numbers(std),
        },
    }


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
