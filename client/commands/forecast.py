"""What ``bitpress compress --dry-run`` prints."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import typer
from rich.markup import escape
from rich.table import Table

from client.client import Client
from client.commands.tables import standard_output
from client.errors import BitpressProblem, UnusableFile
from client.types import CompressSpec, Forecast

_UNREAD = "The checkpoint itself was not read."


def foresee(client: Client, spec: CompressSpec, source: Path | None) -> None:
    """Print what the job would come to; ``source`` is the dataset where it would be sent first.

    Raises:
        BitpressProblem: the specification cannot be used.
        UnusableFile: the service has another dataset of this name.
        typer.Exit: the service does not have the dataset yet, on which the rest depends.
    """
    if source is not None:
        _refuse_another(client, spec.dataset, source)
    try:
        forecast = client.dry_run(spec)
    except BitpressProblem as refused:
        # That it is not registered is told last.
        if source is None or refused.field != "spec.dataset":
            raise
        _ask_for_dataset(spec, source)
        raise typer.Exit(1) from None
    show_forecast(forecast)
    if spec.checkpoint is None:
        standard_output().print(_UNREAD, highlight=False)


def _refuse_another(client: Client, name: str, source: Path) -> None:
    """Return where the name is free: an archive that the service has would not be sent."""
    if any(known.name == name for known in client.datasets()):
        raise UnusableFile(
            f"The service's dataset {name} is not {source}: its archive is another one. "
            f"Choose a new name with --dataset-name, or give --dataset {name} to use the service's"
        )


def _ask_for_dataset(spec: CompressSpec, source: Path) -> None:
    order = "The specification and the checkpoint are in order so far."
    if spec.checkpoint is None:
        order = "The specification is in order so far; the checkpoint itself was not read."
    typer.echo(
        f"{order}\n"
        "Sizes, seconds and memory follow from the dataset, which the service does not have yet.\n"
        f"  remedy: bitpress datasets {spec.dataset} --add {shlex.quote(str(source))}\n"
        "          sends it; then ask again",
        err=True,
    )


def show_forecast(forecast: Forecast) -> None:
    """Print the layers, sizes, seconds and memory that are foreseen."""
    table = Table(forecast.architecture, "kind", "shape", "weights", "bits each", "bytes packed")
    for column in table.columns[3:]:
        column.justify = "right"
    for layer in forecast.layers:
        table.add_row(
            escape(layer.name),
            layer.kind,
            " x ".join(map(str, layer.shape)),
            f"{layer.weights:,}",
            f"{layer.bits:g}" if layer.binary else "float",
            f"{layer.packed_bytes:,}",
        )
    console = standard_output()
    console.print(table, highlight=False)
    for line in _lines(forecast):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines(forecast: Forecast) -> Iterator[str]:
    yield f"parameters  {forecast.parameters:,}"
    yield f"bytes       {forecast.float_bytes:,} before, {forecast.packed_bytes:,} after"
    yield f"ratio       {forecast.compression_ratio:.1f}"
    stages = (f"{stage} {seconds:.1f}" for stage, seconds in forecast.seconds.items())
    yield f"seconds     {forecast.total_seconds:.1f} ({', '.join(stages)})"
    yield f"memory      {forecast.memory_bytes / 2**20:,.0f} MiB"
    for assumption in forecast.basis.assumptions:
        yield f"- {assumption}"
