"""Plots as data: marks at their places, which ``templates/drawing.html`` writes as inline SVG.

Nothing here makes markup, so that no name needs escaping before the template does it. Lengths are
in the drawing's own units, which are CSS pixels at its natural size; y grows downwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import ClassVar, Literal

Anchor = Literal["start", "middle", "end"]

_STEPS = (1, 2, 5, 10)


@dataclass(frozen=True)
class Text:
    """A line of text with its baseline at ``y``; ``style`` is a class of the style sheet."""

    x: float
    y: float
    text: str
    anchor: Anchor = "start"
    style: str = "label"
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Rectangle:
    """A bar; ``title`` is what a pointer held over it shows."""

    x: float
    y: float
    width: float
    height: float
    style: str
    title: str = ""
    kind: ClassVar[str] = "rectangle"


@dataclass(frozen=True)
class Line:
    """A curve through ``points``, or a straight line."""

    points: tuple[tuple[float, float], ...]
    style: str
    kind: ClassVar[str] = "line"


@dataclass(frozen=True)
class Dot:
    """A point of a curve."""

    x: float
    y: float
    radius: float
    style: str
    title: str = ""
    kind: ClassVar[str] = "dot"


Mark = Text | Rectangle | Line | Dot


@dataclass(frozen=True)
class Drawing:
    """A plot; ``title`` says in words what it shows, for those who do not see it."""

    title: str
    width: float
    height: float
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Scale:
    """From values to places: ``low`` lies at ``start``, ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Return where ``value`` lies; what is out of range lies at the nearest end."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.logarithmic:
            low, high, value = log10(low), log10(high), log10(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def decimals(self, unit: float = 1.0) -> int:
        """Return how many decimals tell a linear scale's ticks apart, counted in 1 / ``unit``."""
        return max(0, -floor(log10(unit * (self.ticks[1] - self.ticks[0])) + 1e-9))


def linear_scale(
    values: Sequence[float], start: float, end: float, *, zero: bool = True, ticks: int = 5
) -> Scale:
    """Return a scale over ``values``, with 0 on it if ``zero``, and at most ``ticks`` + 2 ticks.

    Both ends are ticks: multiples of 1, 2 or 5 times a power of ten.
    """
    low = min([*values, *([0.0] if zero else [])], default=0.0)
    high = max([*values, *([0.0] if zero else [])], default=1.0)
    if high - low < 1e-12:
        low, high = (low, low + 1.0) if zero else (low - 0.5, low + 0.5)
    power = 10.0 ** floor(log10((high - low) / ticks))
    step = next(power * s for s in _STEPS if (high - low) / (power * s) <= ticks + 1e-9)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    places = tuple(step * i for i in range(first, last + 1))
    return Scale(places[0], places[-1], start, end, places)


def logarithmic_scale(values: Sequence[float], start: float, end: float) -> Scale:
    """Return a scale over the positive of ``values``, its ends 1, 2 or 5 times a power of ten.

    It spans at most six decades; what is less, 0 for example, lies at its low end.
    """
    positive = [value for value in values if value > 0]
    high = max(positive, default=1.0)
    low = max(min(positive, default=0.1), high * 1e-6)
    edges = [s * 10.0**p for p in range(floor(log10(low)), ceil(log10(high)) + 1) for s in _STEPS]
    below = max(edge for edge in edges if edge <= low * (1 + 1e-9))
    above = min(edge for edge in edges if edge >= high * (1 - 1e-9) and edge > below)
    ticks = sorted({edge for edge in edges if below <= edge <= above})
    if len(ticks) > 5:
        ticks = [tick for tick in ticks if abs(log10(tick) - round(log10(tick))) < 1e-9]
    return Scale(below, above, start, end, tuple(ticks), logarithmic=True)
