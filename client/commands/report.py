"""``bitpress report``: what a finished job measured, as tables or as a page."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.client import Client
from client.commands.options import DEFAULT_URL, Url
from client.errors import UnusableFile
from client.types import Gate, ModelReference, Report

_MOST_LAYERS = 3
_CHANCE = (
    "warning: the network answers no better than chance before compression: "
    "check --mean, --std, --value-range and the order of the classes"
)


def report(
    job: Annotated[
        str, typer.Argument(metavar="JOB", help="Id of a job that succeeded or was rejected.")
    ],
    html: Annotated[
        Path | None, typer.Option(help="File to write the report to, as a page with plots.")
    ] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Show what a job measured, or write it to a file as a page."""
    with Client(url) as client:
        if html is None:
            found = client.report(job)
            show(found, found.model)
            return
        page = client.report_page(job)
    try:
        html.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UnusableFile(f"{html}: {error.strerror}") from None
    typer.echo(html)


def show(report: Report, model: ModelReference | None) -> None:
    """Print what was measured before and after compression."""
    table = Table("", "before", "after", title_justify="left")
    if model is not None:
        table.title = f"{model.name}, version {model.version}"
    for column in table.columns[1:]:
        column.justify = "right"
    for row in _rows(report):
        table.add_row(*row)
    console = Console()
    console.print(table)
    for line in _lines(report):
        console.print(escape(line))
    if _by_chance(report):
        typer.echo(_CHANCE, err=True)


def _rows(report: Report) -> Iterator[tuple[str, str, str]]:
    accuracy, agreement = report.accuracy, report.agreement
    yield "accuracy", f"{accuracy.full_precision:.2%}", f"{accuracy.packed:.2%}"
    if accuracy.fine_tuned is not None:
        yield "- calibrated only", "", f"{accuracy.calibrated:.2%}"
        yield "- fine-tuned", "", f"{accuracy.fine_tuned:.2%}"
    if accuracy.packed_float_activations is not None:
        yield "- float activations", "", f"{accuracy.packed_float_activations:.2%}"
    if agreement is not None:
        yield "answered as before", "", f"{agreement.top1:.2%}"
    before, after = (report.confidence.get(form) for form in ("full_precision", "packed"))
    if before is not None and after is not None:
        errors = [f"{found.expected_calibration_error:.2%}" for found in (before, after)]
        yield "expected calibration error of the confidence", errors[0], errors[1]
    yield "bytes", f"{report.bytes.float:,}", f"{report.bytes.packed:,}"
    yield "ratio", "", f"{report.compression_ratio:.1f}"
    latency = report.latency
    if latency is not None:
        yield "ms an image", f"{latency.float_ms:.3g}", f"{latency.packed_ms:.3g}"
    yield "seconds of work", "", f"{sum(report.stage_seconds.values()):.1f}"


def _lines(report: Report) -> Iterator[str]:
    images, calibration = report.document.get("test_images"), report.document.get("calibration")
    if images is not None and calibration is not None:
        yield f"measured on {images:,} test images; calibrated on {calibration}"
    if report.gate is not None:
        yield _gate(report.gate)
    if report.runtime is not None:
        kernels = "" if report.kernels is None else f", kernels {report.kernels}"
        yield f"the packed network ran on the runtime {report.runtime}{kernels}"
    if report.agreement is not None:
        change, error = (
            100 * x for x in (report.agreement.change, report.agreement.standard_error)
        )
        yield f"the accuracy's change is {change:+.2f} points, standard error {error:.2f}"
    worst = [f"{one.name} ({one.loss:.3g})" for one in report.layers_by_loss[:_MOST_LAYERS]]
    if worst:
        yield "the layers that lose most: " + ", ".join(worst)


def _by_chance(report: Report) -> bool:
    """Return whether the accuracy before compression is about that of guesses.

    Half as much again is taken for chance too, but never more than five points: of two classes,
    three quarters right are no guesses.
    """
    classes = report.document.get("classes")
    if not isinstance(classes, list) or len(classes) < 2:
        return False
    chance = 1 / len(classes)
    return report.accuracy.full_precision <= chance + min(chance / 2, 0.05)


def _gate(gate: Gate) -> str:
    verdict = "passed" if gate.passed else "not passed"
    change = "gained" if gate.drop < 0 else "lost"
    return (
        f"accuracy gate {verdict}: {change} {100 * abs(gate.drop):.2f} points on {gate.images:,} "
        f"validation images, {100 * gate.max_accuracy_drop:.2f} allowed"
    )
