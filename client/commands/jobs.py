"""``bitpress jobs``: what is queued, running and done, and what shall become of it."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated, get_args

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.client import Client
from client.commands.following import follow, follow_as_json
from client.commands.options import DEFAULT_URL, Url
from client.commands.remedies import as_commands
from client.commands.tables import print_table, standard_output, time_of
from client.progress import where
from client.types import Job, JobState

STATES: tuple[JobState, ...] = get_args(JobState)


def jobs(
    job: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Id of a job; without one, all are listed.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Stay with the job until its end.")
    ] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel the job.")] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Let the failed or cancelled job go on.")
    ] = False,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove the finished job; its model stays.")
    ] = False,
    state: Annotated[
        list[str] | None,
        typer.Option(help=f"Only those in this state, repeatable: {', '.join(STATES)}."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Only those for the model of this name.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most jobs to list, the newest first.")] = 20,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, one object in each line.")
    ] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List jobs, or show, watch, cancel, retry or delete one."""
    _refuse_mixtures(job, watch=watch, cancel=cancel, retry=retry, delete=delete)
    with Client(url) as client:
        if job is None:
            _list(client, [_state(text) for text in state or ()], model, limit, as_json)
        elif delete:
            client.delete_job(job)
            typer.echo(f"removed job {job}", err=True)
        else:
            _handle(client, job, watch=watch, cancel=cancel, retry=retry, as_json=as_json)


def _refuse_mixtures(
    job: str | None, *, watch: bool, cancel: bool, retry: bool, delete: bool
) -> None:
    if job is None and (watch or cancel or retry or delete):
        raise typer.BadParameter("name the job: bitpress jobs ID ...")
    if cancel + retry + delete > 1:
        raise typer.BadParameter("choose one of --cancel, --retry and --delete")
    if watch and (cancel or delete):
        raise typer.BadParameter("--watch goes with --retry only")


def _state(text: str) -> JobState:
    for state in STATES:
        if text == state:
            return state
    raise typer.BadParameter(f"there is no state {text!r}; there are: {', '.join(STATES)}")


def _handle(
    client: Client, job_id: str, *, watch: bool, cancel: bool, retry: bool, as_json: bool
) -> None:
    found = client.cancel(job_id) if cancel else client.retry(job_id) if retry else None
    if watch:
        (follow_as_json if as_json else follow)(client, Console(stderr=True), job_id)
        return
    if found is None:
        found = client.job(job_id)
    if as_json:
        typer.echo(_as_json(found))
    else:
        _show(found)


def _list(
    client: Client, states: Sequence[JobState], model: str | None, limit: int, as_json: bool
) -> None:
    found = list(islice(client.jobs(state=states, model=model, page_size=min(limit, 200)), limit))
    if as_json:
        for job in found:
            typer.echo(_as_json(job))
        return
    table = Table("job", "model", "state", "progress", "queued (UTC)", "finished (UTC)")
    for job in found:
        table.add_row(*map(escape, _row(job)))
    print_table(table, "no jobs")


def _row(job: Job) -> Sequence[str]:
    return (
        job.id,
        _model(job),
        where(job),
        f"{job.progress:.0%}",
        time_of(job.created_at),
        time_of(job.finished_at),
    )


def _show(job: Job) -> None:
    console = standard_output()
    for name, value in _lines(job):
        console.print(f"{name:<10} {value}", markup=False, highlight=False, soft_wrap=True)


def _lines(job: Job) -> Iterator[tuple[str, str]]:
    yield "job", job.id
    yield "model", _model(job)
    yield "state", job.state
    if not job.finished:
        yield "progress", f"{job.progress:.0%}"
        if job.stage is not None:
            yield "stage", where(job)
        if job.message is not None:
            yield "message", job.message
        if job.estimated_end is not None:
            yield "ends", f"about {time_of(job.estimated_end)} UTC"
    yield "queued", f"{time_of(job.created_at)} UTC"
    if job.started_at is not None:
        yield "started", f"{time_of(job.started_at)} UTC"
    if job.finished_at is not None:
        yield "finished", f"{time_of(job.finished_at)} UTC"
    if job.stage_seconds:
        stages = (f"{stage} {seconds:.1f}" for stage, seconds in job.stage_seconds.items())
        yield "seconds", ", ".join(stages)
    if job.problem is not None:
        yield "problem", job.problem.title
        members = {"detail": job.problem.detail, "field": job.problem.field}
        yield from ((name, value) for name, value in members.items() if value)
        if job.problem.remedy:
            yield "remedy", as_commands(job.problem.remedy, job.id)


def _model(job: Job) -> str:
    if job.model is not None:
        return f"{job.model.name}, version {job.model.version}"
    return str(job.spec.get("name", ""))


def _as_json(job: Job) -> str:
    return json.dumps(job.model_dump(mode="json"), ensure_ascii=False)
