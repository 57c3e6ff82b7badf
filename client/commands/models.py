"""``bitpress models``: what is published, under which aliases, and what is to be removed."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.client import Client
from client.commands.options import DEFAULT_URL, Url, Yes, confirmed
from client.commands.tables import print_table, time_of
from client.progress import TransferProgress
from client.types import Model, ModelVersion


def models(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Name of a model; without one, all are listed."),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(help="ALIAS=VERSION: let the alias point to the version; repeatable."),
    ] = None,
    remove_alias: Annotated[
        list[str] | None, typer.Option(help="Remove this alias; repeatable.")
    ] = None,
    delete: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Remove this version, or all of them.")
    ] = None,
    download: Annotated[Path | None, typer.Option(help="File to write the artifact to.")] = None,
    version: Annotated[
        int | None,
        typer.Option(min=1, help="Version to download.", show_default="the latest"),
    ] = None,
    yes: Yes = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, one object in each line.")
    ] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List published models, or show, name, download or remove one."""
    aliases = [_alias(text) for text in alias or ()]
    changes = bool(aliases or remove_alias or delete or download)
    if name is None and changes:
        raise typer.BadParameter("name the model: bitpress models NAME ...")
    if delete not in (None, "all") and not str(delete).isdecimal():
        raise typer.BadParameter("--delete takes the number of a version, or all")
    if version is not None and download is None:
        raise typer.BadParameter("--version goes with --download")
    with Client(url) as client:
        if name is None:
            _list(client.models(), as_json)
            return
        for one, number in aliases:
            client.set_alias(name, one, number)
        for one in remove_alias or ():
            client.delete_alias(name, one)
        if download is not None:
            _download(client, name, version, download)
        if delete is not None:
            _delete(client, name, delete, yes)
        elif not download:
            _show(client.model_versions(name), as_json)


def _alias(text: str) -> tuple[str, int]:
    alias, separator, number = text.partition("=")
    if not separator or not alias or not number.isdecimal():
        raise typer.BadParameter(f"{text!r} is not of the form ALIAS=VERSION, such as stable=3")
    return alias, int(number)


def _download(client: Client, name: str, version: int | None, target: Path) -> None:
    console = Console(stderr=True)
    number = client.model(name).latest if version is None else version
    with TransferProgress(console, f"Downloading {name}, version {number}") as received:
        typer.echo(client.download_artifact(name, number, target, received))


def _delete(client: Client, name: str, version: str, yes: bool) -> None:
    what = f"all versions of {name}" if version == "all" else f"{name}, version {version}"
    confirmed(f"Remove {what} for good?", yes)
    if version == "all":
        client.delete_model(name)
    else:
        client.delete_version(name, int(version))
    typer.echo(f"removed {what}", err=True)


def _list(found: list[Model], as_json: bool) -> None:
    if as_json:
        for model in found:
            typer.echo(json.dumps(model.model_dump(mode="json"), ensure_ascii=False))
        return
    table = Table("model", "latest", "versions", "aliases", "before", "after", "ratio", "bytes")
    for model in found:
        aliases = (f"{alias}={number}" for alias, number in (model.aliases or {}).items())
        row = (
            model.name,
            str(model.latest),
            str(len(model.versions)),
            ", ".join(aliases),
            f"{model.accuracy.full_precision:.2%}",
            f"{model.accuracy.packed:.2%}",
            f"{model.compression_ratio:.1f}",
            f"{model.bytes.packed:,}",
        )
        table.add_row(*map(escape, row))
    print_table(table, "no models")


def _show(found: list[ModelVersion], as_json: bool) -> None:
    if as_json:
        for version in found:
            typer.echo(json.dumps(version.model_dump(mode="json"), ensure_ascii=False))
        return
    table = Table(
        *("version", "aliases", "network", "method", "before", "after", "ratio", "bytes"),
        *("ms before", "ms after", "published (UTC)"),
    )
    for version in found:
        latency = version.latency
        row = (
            str(version.version),
            ", ".join(version.aliases),
            version.architecture,
            version.method,
            f"{version.accuracy.full_precision:.2%}",
            f"{version.accuracy.packed:.2%}",
            f"{version.compression_ratio:.1f}",
            f"{version.bytes.packed:,}",
            "" if latency is None else f"{latency.float_ms:.3g}",
            "" if latency is None else f"{latency.packed_ms:.3g}",
            time_of(version.created_at),
        )
        table.add_row(*map(escape, row))
    print_table(table, "no versions")
