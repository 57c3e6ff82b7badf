"""What every command leaves under docs/results/: a page with a table, a plot, and a record."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table as ScreenTable

from benchmarks.compression import console
from benchmarks.record import make_record


@dataclass(frozen=True)
class Table:
    """Rows of text below headings; all columns but the first are numbers, on the right."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return the table as Markdown."""
        rule = ["---"] + ["---:"] * (len(self.headings) - 1)
        return "\n".join(
            "| " + " | ".join(cells) + " |" for cells in (self.headings, rule, *self.rows)
        )

    def show(self) -> None:
        """Print the table: drawn on a terminal, as Markdown where it goes to a file."""
        if not console.is_terminal:
            console.print(self.markdown(), soft_wrap=True, markup=False, highlight=False)
            return
        screen = ScreenTable()
        for index, heading in enumerate(self.headings):
            screen.add_column(heading, justify="right" if index else "left")
        for row in self.rows:
            # Backticks are for the page.
            screen.add_row(*(cell.replace("`", "") for cell in row))
        console.print(screen)


@dataclass(frozen=True)
class Result:
    """One table or figure, as it is written.

    ``name`` is that of its files, ``title`` its heading, ``caption`` says what is shown and how it
    was measured (a paragraph each), ``figures`` is the flat map of the record, and ``draw`` writes
    the plot to a file.
    """

    name: str
    title: str
    caption: Sequence[str]
    table: Table
    figures: dict[str, float]
    seeds: Sequence[int]
    draw: Callable[[Path], None]

    def write(self, folder: Path) -> None:
        """Write ``<name>.md``, ``<name>.png`` and ``<name>.json`` to ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        figures = {**self.figures, "threads": float(torch.get_num_threads())}
        record = make_record(seed=list(self.seeds), figures=figures)
        self.draw(folder / f"{self.name}.png")
        (folder / f"{self.name}.json").write_text(json.dumps(record, indent=2) + "\n")
        (folder / f"{self.name}.md").write_text(self._page(record))
        console.print(f"written: {folder / self.name}.md, .png and .json")

    def _page(self, record: dict[str, Any]) -> str:
        """Return the page: plot, caption, table, and where the figures come from."""
        hardware, versions = record["hardware"], record["versions"]
        seeds = ", ".join(map(str, self.seeds))
        threads = torch.get_num_threads()
        origin = (
            f"Measured {record['date']} on {hardware['cores']} cores of {hardware['processor']} "
            f"({threads} thread{'s' if threads > 1 else ''}), torch {versions['torch']}, "
            f"seed{'s' if len(self.seeds) > 1 else ''} {seeds}. "
            f"All figures: [{self.name}.json]({self.name}.json)."
        )
        return "\n\n".join(
            (
                f"# {self.title}",
                f"![{self.title}]({self.name}.png)",
                *self.caption,
                self.table.markdown(),
                origin,
                f"```console\n{record['command']}\n```\n",
            )
        )


def percent(share: float, digits: int = 2) -> str:
    """Return a share in 0..1 as a percentage without its sign."""
    return f"{100 * share:.{digits}f}"


def standard_error_note(images: int, accuracy: float) -> str:
    """Return a sentence that tells how far chance alone moves an accuracy, in 0..1."""
    error = (accuracy * (1 - accuracy) / images) ** 0.5
    return (
        f"Accuracies are in percent of {images:,} images: "
        f"{100 * error:.1f} points are one standard error."
    )
