"""Staying with a job until its end, and leaving it alone before."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from client.client import Client
from client.commands.report import show
from client.errors import raise_for_end
from client.progress import JobProgress


def follow(client: Client, console: Console, job_id: str) -> None:
    """Show how a job goes on, and at its end what it measured.

    Raises:
        JobFailed: it did not succeed. A rejected model's figures are shown all the same.
    """
    with _leaving(console, job_id), JobProgress(console) as shown:
        job = client.wait(job_id, shown, on_event=shown.hear)
    if job.state in ("succeeded", "rejected"):
        show(client.report(job_id), job.model)
    raise_for_end(job)


def follow_as_json(client: Client, console: Console, job_id: str) -> None:
    """Print a job's events, one JSON object in each line, until its end.

    Raises:
        JobFailed: it did not succeed.
    """
    with _leaving(console, job_id):
        for event in client.events(job_id):
            typer.echo(event.model_dump_json())
    raise_for_end(client.job(job_id))


@contextmanager
def _leaving(console: Console, job_id: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        console.print(
            f"\nThe job goes on. bitpress jobs {job_id} --watch shows it again, "
            f"bitpress jobs {job_id} --cancel ends it.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise
