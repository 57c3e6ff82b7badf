"""Progress on the terminal: a bar where somebody watches, a line per step in a log."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from client.types import Job, JobEvent


class TransferProgress:
    """Bytes sent or received so far of one file. Call it with ``(done, total)``; use it as a
    context."""

    def __init__(self, console: Console, what: str) -> None:
        self._what = what
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task(escape(self._what), total=total)
            if not self._console.is_terminal:
                self._console.print(f"{self._what} ({total:,} bytes)", markup=False)
        self._bar.update(self._task, completed=done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()


class JobProgress:
    """How a job goes on. Call it with each record, `hear` its events; use it as a context.

    On a terminal a bar with stage, layer, sweep, loss, images a second and estimated end; elsewhere
    one line for each step.
    """

    def __init__(
        self, console: Console, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._console = console
        self._now = now
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[details]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("queued", total=1.0, details="")
        self._shown: str | None = None
        self._heard: JobEvent | None = None

    def __call__(self, job: Job) -> None:
        text = where(job)
        ends = ends_in(job.estimated_end, self._now()) if job.state == "running" else None
        details = [*_details(self._heard, job), *([ends] if ends else [])]
        self._bar.update(
            self._task,
            completed=job.progress,
            description=escape(text),
            details=escape(", ".join(details)),
        )
        if not self._console.is_terminal and text != self._shown:
            self._console.print(
                f"{job.progress:4.0%} {text}", markup=False, highlight=False, soft_wrap=True
            )
        self._shown = text

    def hear(self, event: JobEvent) -> None:
        """Take in what an event tells beyond the job's record; shown with the next record."""
        if event.kind in ("progress", "sweep"):
            self._heard = event
        elif event.kind in ("stage", "step", "epoch"):
            self._heard = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()


def where(job: Job) -> str:
    """Return where a job stands: its stage and step while it runs, else its state.

    While it is fine-tuned, also what the last finished epoch came to.
    """
    if job.state != "running" or job.stage is None:
        return job.state
    text = job.stage if job.step is None else f"{job.stage} {job.step}"
    if job.stage == "fine_tune" and job.epochs:
        last = job.epochs[-1]
        text += f" (before: loss {last.loss:.3f}, training accuracy {last.train_accuracy:.1%})"
    return text


def ends_in(estimated_end: datetime | None, now: datetime) -> str | None:
    """Return how long it will probably take, in words; None where that is not known."""
    if estimated_end is None:
        return None
    if estimated_end.tzinfo is None:
        estimated_end = estimated_end.replace(tzinfo=UTC)
    seconds = max(0, round((estimated_end - now).total_seconds()))
    if seconds < 90:
        return f"about {seconds} s left"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"about {minutes} min left"
    return f"about {minutes // 60} h {minutes % 60} min left"


def _details(event: JobEvent | None, job: Job) -> Iterator[str]:
    if event is None or job.state != "running":
        return
    sweep, base = event.data.get("sweep"), event.data.get("base")
    if isinstance(base, int) and base > 1:
        yield f"base {base}"
    if isinstance(sweep, int):
        yield f"sweep {sweep}"
    if event.loss is not None:
        yield f"loss {event.loss:.4f}"
    if event.images_per_second is not None:
        yield f"{event.images_per_second:,.0f} images/s"
