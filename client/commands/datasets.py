"""``bitpress datasets``: images that jobs calibrate, train and are measured on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.client import Client
from client.commands.options import DEFAULT_URL, Url, Yes, confirmed
from client.commands.tables import print_table, standard_output, time_of
from client.errors import UnusableFile
from client.progress import TransferProgress
from client.types import Dataset, DatasetDetail
from client.upload import dataset_name

_MOST_CLASSES = 20


def datasets(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Name of a dataset; without one, all are listed."),
    ] = None,
    add: Annotated[
        Path | None,
        typer.Option(
            help="Folder, zip, tar, .npz or CIFAR archive to upload; NAME is by default its own."
        ),
    ] = None,
    root: Annotated[
        str | None,
        typer.Option(help="Register this root of the operator under NAME; its images stay there."),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="File to write samples of each class to, as a PNG image.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove the dataset.")] = False,
    yes: Yes = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, one object in each line.")
    ] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List datasets, or register, show or remove one."""
    if name is None and (root is not None or sheet is not None or delete):
        raise typer.BadParameter("name the dataset: bitpress datasets NAME ...")
    if add is not None and root is not None:
        raise typer.BadParameter("choose one of --add and --root")
    if delete and (add is not None or root is not None or sheet is not None):
        raise typer.BadParameter("--delete goes alone")
    with Client(url) as client:
        if add is not None:
            name = _add(client, add, name)
        if name is None:
            _list(client.datasets(), as_json)
            return
        if root is not None:
            client.register_root(name, root)
        if delete:
            confirmed(f"Remove the dataset {name} for good?", yes)
            client.delete_dataset(name)
            typer.echo(f"removed dataset {name}", err=True)
        elif sheet is not None:
            _write(sheet, client.dataset_sheet(name))
        else:
            _show(client.dataset(name), as_json)


def _add(client: Client, source: Path, name: str | None) -> str:
    with TransferProgress(Console(stderr=True), f"Uploading {source.name}") as sent:
        return client.upload_dataset(source, name or dataset_name(source), sent).name


def _write(target: Path, content: bytes) -> None:
    try:
        target.write_bytes(content)
    except OSError as error:
        raise UnusableFile(f"{target}: {error.strerror}") from None
    typer.echo(target)


def _list(found: list[Dataset], as_json: bool) -> None:
    if as_json:
        for dataset in found:
            typer.echo(json.dumps(dataset.model_dump(mode="json"), ensure_ascii=False))
        return
    table = Table("dataset", "classes", "images", "source", "bytes", "registered (UTC)")
    for dataset in found:
        row = (
            dataset.name,
            f"{len(dataset.classes):,}",
            _images(dataset),
            _source(dataset),
            f"{dataset.bytes:,}",
            time_of(dataset.created_at),
        )
        table.add_row(*map(escape, row))
    print_table(table, "no datasets")


def _show(dataset: DatasetDetail, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(dataset.model_dump(mode="json"), ensure_ascii=False))
        return
    console = standard_output()
    for name, value in _lines(dataset):
        console.print(f"{name:<10} {value}", markup=False, highlight=False, soft_wrap=True)
    table = Table("class", *dataset.counts)
    for column in table.columns[1:]:
        column.justify = "right"
    for label in dataset.classes[:_MOST_CLASSES]:
        counts = (f"{split.get(label, 0):,}" for split in dataset.counts.values())
        table.add_row(escape(label), *counts)
    if dataset.counts:
        console.print(table, highlight=False)
    if len(dataset.classes) > _MOST_CLASSES:
        console.print(f"and {len(dataset.classes) - _MOST_CLASSES:,} classes more; --json has all")


def _lines(dataset: DatasetDetail) -> Iterator[tuple[str, str]]:
    yield "dataset", dataset.name
    yield "classes", f"{len(dataset.classes):,}"
    yield "images", _images(dataset)
    yield "bytes", f"{dataset.bytes:,}"
    if dataset.source is not None:
        yield "source", _source(dataset)
    sizes = dataset.image_sizes
    if sizes is not None:
        named = {"smallest": sizes.smallest, "median": sizes.median, "largest": sizes.largest}
        found = (f"{name} {size.height} x {size.width}" for name, size in named.items())
        yield "sizes", f"{', '.join(found)} (height x width; sampled from {sizes.sampled:,} images)"
    yield "digest", dataset.digest


def _images(dataset: Dataset) -> str:
    return ", ".join(f"{split} {count:,}" for split, count in dataset.splits.items())


def _source(dataset: Dataset) -> str:
    if dataset.root is not None:
        return f"root {dataset.root}"
    return dataset.source or ""
