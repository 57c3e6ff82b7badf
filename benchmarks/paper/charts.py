"""Plots of one look: readable at the width of a page, in print and without colour vision.

Colours are those of Okabe and Ito, "Color universal design" (2008), or for ordered series the map
viridis (van der Walt and Smith, 2015); markers and line styles differ as well, so that no plot
depends on colour. Nothing here needs a display.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator

BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
)
GREY = "#6E6E6E"

_CYCLE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_STYLES = ("-", "--", "-.", ":")
# Of the map's dark half and middle: its light end is too faint on white.
_MAP_RANGE = (0.0, 0.86)

_WIDTH_INCHES, _DOTS_PER_INCH = 7.2, 150
# Of a panel of lines.
HEIGHT_INCHES = 4.2
_LOOK: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: equal pixels on every machine
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
}


Panel = Callable[[Axes], None]
Place = Literal["best", "lower left", "lower right", "upper left", "upper right", "beside"]


@dataclass(frozen=True)
class Series:
    """One line: points (x, y), with ``low`` and ``high`` the range of y where there are several."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Level:
    """A horizontal line for comparison."""

    name: str
    y: float


@dataclass(frozen=True)
class Dots:
    """Values of several kinds for every group: ``values[kind]`` has one for each, or None.

    ``low`` and ``high`` have the range behind each value, for kinds where there is one.
    """

    groups: Sequence[str]
    values: Mapping[str, Sequence[float | None]]
    low: Mapping[str, Sequence[float]] = field(default_factory=dict)
    high: Mapping[str, Sequence[float]] = field(default_factory=dict)


def plot(file: Path, *panels: tuple[float, Panel]) -> None:
    """Write a PNG of panels below each other, each with its height in inches and what draws it.

    Equal calls give equal bytes.
    """
    heights = [height for height, _ in panels]
    # From the defaults, not from what a user has configured.
    with rc_context(dict(matplotlib.rcParamsDefault) | _LOOK):
        figure = Figure(figsize=(_WIDTH_INCHES, sum(heights)), layout="constrained")
        axes = figure.subplots(
            len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights}
        )
        for (_, panel), place in zip(panels, axes[:, 0], strict=True):
            panel(place)
        # Without matplotlib's version: the same figures give the same file.
        figure.savefig(file, dpi=_DOTS_PER_INCH, metadata={"Software": None})


def lines(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    levels: Sequence[Level] = (),
    ordered: bool = False,
    log: bool = False,
    ticks: Sequence[str] | None = None,
    legend: Place = "best",
    y_range: tuple[float | None, float | None] = (None, None),
) -> Panel:
    """Return a panel of lines; x counts something, so that its ticks are whole numbers.

    ``ordered`` series, such as layers, are coloured along a map. ``ticks`` names x = 0, 1, 2, ...
    ``legend`` is a place inside the panel, or "beside" for right of it.
    """

    def draw(axes: Axes) -> None:
        for index, one in enumerate(series):
            colour = _along_map(index, len(series)) if ordered else _CYCLE[index % len(_CYCLE)]
            axes.plot(
                one.x,
                one.y,
                "-" if ordered else _STYLES[index % len(_STYLES)],
                color=colour,
                marker=_MARKERS[index % len(_MARKERS)],
                markeredgecolor="white",
                markeredgewidth=0.6,
                label=one.name,
            )
            if one.low is not None and one.high is not None:
                axes.fill_between(one.x, one.low, one.high, color=colour, alpha=0.18, linewidth=0)
        for index, level in enumerate(levels):
            style = _STYLES[1 + index % (len(_STYLES) - 1)]
            axes.axhline(level.y, color=GREY, linestyle=style, linewidth=1.4, label=level.name)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        if log:
            axes.set_yscale("log")
            # Plain numbers: powers of ten with a factor before them are hard to read.
            axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.yaxis.set_minor_formatter(FormatStrFormatter("%g"))
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            axes.grid(visible=True, which="minor", axis="y")
        if y_range != (None, None):
            # Not always: this also ends the fitting of the range to what is drawn.
            axes.set_ylim(*y_range)
        if ticks is None:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        else:
            # As wide as the panel, about.
            steep = len(ticks) * (2 + max(map(len, ticks))) > 80
            axes.set_xticks(
                range(len(ticks)),
                ticks,
                rotation=35 if steep else 0,
                ha="right" if steep else "center",
            )
        if legend == "beside":
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        elif len(series) + len(levels) > 1:
            axes.legend(loc=legend)

    return draw


def dots(
    content: Dots,
    *,
    title: str,
    x_label: str,
    level: Level | None = None,
    x_range: tuple[float, float] | None = None,
) -> Panel:
    """Return a panel with a line for each group, a dot on it for each value, and the number beside.

    Dots mark places, unlike bars, whose lengths would have to begin at zero: the axis may show a
    part of the range. ``level`` is a vertical line for comparison.
    """

    def draw(axes: Axes) -> None:
        count = len(content.values)
        for index, (name, values) in enumerate(content.values.items()):
            colour = _CYCLE[index % len(_CYCLE)]
            axes.plot([], [], _MARKERS[index], color=colour, markersize=7, label=name)
            for group, value in enumerate(values):
                if value is None:
                    continue
                place = group + (index - (count - 1) / 2) * 0.5 / count
                axes.plot([value], [place], _MARKERS[index], color=colour, markersize=7)
                axes.annotate(
                    f"{value:.2f}",
                    (value, place),
                    xytext=(8, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=9,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
                )
            low, high = content.low.get(name), content.high.get(name)
            if low is not None and high is not None:
                places = [
                    group + (index - (count - 1) / 2) * 0.5 / count for group in range(len(low))
                ]
                axes.hlines(places, low, high, color=colour, linewidth=2.5, alpha=0.5)
        axes.set_yticks(range(len(content.groups)), content.groups)
        axes.set_ylim(len(content.groups) - 0.5, -0.5)
        axes.set(title=title, xlabel=x_label)
        if x_range is not None:
            axes.set_xlim(*x_range)
        else:
            # Room for the number beside the last dot.
            axes.margins(x=0.12)
        if level is not None:
            axes.axvline(
                level.y, color=GREY, linestyle="--", linewidth=1.4, label=level.name, zorder=0
            )
        if count > 1 or level is not None:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))

    return draw


def _along_map(index: int, count: int) -> tuple[float, float, float, float]:
    low, high = _MAP_RANGE
    share = index / max(count - 1, 1)
    red, green, blue, alpha = matplotlib.colormaps["viridis"](low + (high - low) * share)
    return red, green, blue, alpha
