"""The ``bitpress`` command."""

import sys

import typer

from client.commands.compress import compress
from client.commands.datasets import datasets
from client.commands.jobs import jobs
from client.commands.models import models
from client.commands.predict import predict
from client.commands.remedies import as_commands
from client.commands.report import report
from client.commands.service import serve, up, worker
from client.errors import BitpressProblem, ClientError, JobFailed, ServiceUnreachable

app = typer.Typer(
    name="bitpress",
    help="Turn a trained CNN into single bits, and serve it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (up, serve, worker, compress, jobs, report, datasets, models, predict):
    app.command()(command)


def main() -> None:
    """Run the command line; a failure is told on standard error and ends with exit code 1."""
    try:
        app(prog_name="bitpress")
    except ClientError as error:
        sys.stderr.write(describe(error))
        sys.exit(1)


def describe(error: ClientError) -> str:
    """Return what went wrong, where, and what to do about it, as lines of text."""
    if isinstance(error, ServiceUnreachable):
        return f"error: {error}\n  remedy: start it with bitpress up, or give --url where it is\n"
    if not isinstance(error, BitpressProblem):
        return f"error: {error}\n"
    lines = [f"error: {error.title}"]
    job_id = error.job.id if isinstance(error, JobFailed) else None
    remedy = error.remedy and as_commands(error.remedy, job_id)
    members = {"detail": error.detail, "field": error.field, "remedy": remedy}
    lines += [f"  {name}: {value}" for name, value in members.items() if value]
    return "\n".join(lines) + "\n"
