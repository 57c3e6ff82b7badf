"""``python -m app.metrics_reference``: write docs/METRICS.md from the catalogue of metrics.

With ``--check`` nothing is written, and the exit code is 1 where the file is not what it would be.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from app.errors import reasons
from app.metric_catalogue import ERRORS, SECTIONS, MetricSpec

PAGE = Path(__file__).parents[1] / "docs/METRICS.md"

_HEAD = """\
# Metrics

Every metric of `GET /metrics`, in Prometheus' text format, or in OpenMetrics where that is asked
for. Written by `make docs` from `app/metric_catalogue.py`; [OPERATIONS.md](OPERATIONS.md#metrics)
says what to do with them, `deploy/` has the alerts and the dashboard.

Units are base units, and labels are bounded: routes come as templates, reasons from the list of all
problems, models and workers up to a number. A histogram is scraped as `_bucket`, `_sum` and
`_count`, a summary as `_sum` and `_count`. Ages are taken at the scrape by the database's clock, so
that the clocks of app, workers and Prometheus need not agree.
"""


def page() -> str:
    """Return the page as Markdown."""
    lines = [_HEAD]
    for title, specs in SECTIONS.items():
        lines += [f"## {title}", "", "| metric | type | unit | labels | meaning |"]
        lines += ["|---|---|---|---|---|", *map(_row, specs), ""]
        if ERRORS in specs:
            listed = ", ".join(f"`{reason}`" for reason in sorted(reasons()))
            lines += [f"Reasons: {listed}. All are present from the start, at 0.", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or check it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m app.metrics_reference")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    wanted = page()
    if not parser.parse_args(arguments).check:
        PAGE.write_text(wanted)
        return 0
    if PAGE.is_file() and PAGE.read_text() == wanted:
        return 0
    sys.stderr.write(f"docs/{PAGE.name} is out of date: run make docs\n")
    return 1


def _row(spec: MetricSpec) -> str:
    labels = "<br>".join(f"`{name}`: {values}" for name, values in spec.labels.items())
    return f"| `{spec.name}` | {spec.kind} | {spec.unit} | {labels} | {spec.meaning} |"


if __name__ == "__main__":
    sys.exit(main())
