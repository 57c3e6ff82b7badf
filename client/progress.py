"""Progress on the terminal: a bar where somebody watches, a line per step in a log."""

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

from client.types import Job


class UploadProgress:
    """Bytes sent so far of one upload. Call it with ``(sent, total)``; use it as a context."""

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

    def __call__(self, sent: int, total: int) -> None:
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task(escape(self._what), total=total)
            if not self._console.is_terminal:
                self._console.print(f"{self._what} ({total:,} bytes)", markup=False)
        self._bar.update(self._task, completed=sent)

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
    """The state, stage and layer of a job. Call it with each record; use it as a context."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("queued", total=1.0)
        self._shown: str | None = None

    def __call__(self, job: Job) -> None:
        text = where(job)
        self._bar.update(self._task, completed=job.progress, description=escape(text))
        if not self._console.is_terminal and text != self._shown:
            self._console.print(f"{job.progress:4.0%} {text}", markup=False, highlight=False)
        self._shown = text

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
