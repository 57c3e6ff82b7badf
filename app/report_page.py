"""A job's report as one HTML page that needs nothing else: no script, font or image from anywhere.

What stands in a report was named by whoever uploaded the data, so every value is escaped by the
template engine, characters that do not print are replaced (some of them turn the direction of
writing), and the page's own policy lets it load nothing and run nothing, whatever it holds.
"""

import json
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from math import ceil
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import ValidationError

from app import report_numbers, report_plots
from app.report_document import Confusion, ReportDocument
from store.errors import Unavailable

# In the order of the table; a form that is not listed comes last, under its own name.
FORMS: Mapping[str, str] = {
    "full_precision": "full precision",
    "calibrated": "calibrated",
    "fine_tuned": "fine-tuned",
    "packed_float_activations": "packed, float activations",
    "packed": "packed",
}

_SHADES = 4
_SPACES = "\n\N{NO-BREAK SPACE}"
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def _printable(value: Any) -> Any:
    """Replace what does not print in every text that the template writes out."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return "".join(c if c.isprintable() or c in _SPACES else _REPLACEMENT for c in value)
    return value


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("app"),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": report_numbers.percent,
        "points": report_numbers.points,
        "loss": report_numbers.loss_text,
        "count": report_numbers.count,
        "signed": report_numbers.signed,
        "megabytes": report_numbers.megabytes,
        "milliseconds": report_numbers.milliseconds,
        "form": lambda name: FORMS.get(name, name.replace("_", " ")),
        "json": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    }
    return environment


_ENVIRONMENT = _environment()
_STYLE = _ENVIRONMENT.get_template("report.css").render()
_STYLE_DIGEST = b64encode(sha256(_STYLE.encode()).digest()).decode()

# The style sheet is allowed by its digest: no other style, and no script, is.
_POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_DIGEST}'; base-uri 'none'"
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": f"{_POLICY}; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def render(report: Mapping[str, Any]) -> str:
    """Return the page of ``report``, which is a job's report.json of any schema so far.

    Raises:
        Unavailable: the report is not what it should be.
    """
    try:
        document = ReportDocument.model_validate(report)
    except ValidationError:
        raise Unavailable(
            "The job's report is not what it should be, so that there is no page of it.",
            remedy="Ask for application/json.",
        ) from None
    shown = report_plots.shown_classes(document.classes)
    known = [form for form in FORMS if form in document.accuracy]
    return _ENVIRONMENT.get_template("report.html").render(
        report=document,
        specification=report["spec"],
        policy=_POLICY,
        style=_STYLE,
        forms=[*known, *sorted(set(document.accuracy) - set(FORMS))],
        shown_classes=shown,
        class_bars=report_plots.class_bars(shown),
        change_of=report_plots.change_of,
        heat=_heat(document.confusion),
        reliability=[
            (form, report_plots.reliability(found.bins, FORMS[form], style))
            for form, style in (("full_precision", "before"), ("packed", "after"))
            if (found := document.confidence.get(form)) is not None
        ],
        ranked_layers=report_plots.ranked_layers(document.layers),
        loss_by_step=report_plots.loss_by_step(document.layers),
        epoch_curves=(
            report_plots.epoch_curves(document.fine_tuning.epochs)
            if document.fine_tuning is not None and document.fine_tuning.epochs
            else []
        ),
    )


def _heat(confusion: Confusion | None) -> list[list[tuple[int, str]]]:
    """Return each cell of the confusions' matrix and its shade, by how much is better or worse.

    On the diagonal are the right answers, of which more are better; elsewhere the mistakes.
    """
    if confusion is None or confusion.matrix is None:
        return []
    largest = max((abs(value) for row in confusion.matrix for value in row), default=0)

    def shade(value: int, is_right: bool) -> str:
        if not value:
            return "same"
        better = (value > 0) == is_right
        return f"{'better' if better else 'worse'}-{ceil(_SHADES * abs(value) / largest)}"

    return [
        [(value, shade(value, row == column)) for column, value in enumerate(values)]
        for row, values in enumerate(confusion.matrix)
    ]
