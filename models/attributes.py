"""What an operator's attribute may be: one reader per kind, for JSON and Python values alike.

A reader takes an untrusted value and gives it back in its one Python form (lists become tuples,
whole numbers become floats where a float is meant), or raises ValueError saying what is wanted.
`attribute` attaches it to a dataclass field.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9_.\-]{1,200}")
FLOAT32_MAX: Final = 3.4028234663852886e38

Reader = Callable[[Any], Any]


def attribute(reader: Reader) -> dict[str, Any]:
    """Return the metadata of a dataclass field that ``reader`` reads."""
    return {"reader": reader}


def integer(low: int, high: int) -> Reader:
    """An integer in ``low..high``; true and false are no integers."""

    def read(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"must be an integer in {low}..{high}")
        return value

    return read


def pair(low: int, high: int) -> Reader:
    """Two integers in ``low..high``: of the rows, then of the columns."""
    read_one = integer(low, high)

    def read(value: Any) -> tuple[int, int]:
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise ValueError("must be a pair of integers")
        return (read_one(value[0]), read_one(value[1]))

    return read


def number(*, positive: bool = False) -> Reader:
    """A number that float32 can hold."""

    def read(value: Any) -> float:
        if type(value) not in (int, float) or not -FLOAT32_MAX <= value <= FLOAT32_MAX:
            raise ValueError("must be a finite number")
        if positive and not value >= 2.0**-126:
            raise ValueError("must be a positive number")
        return float(value)

    return read


def choice(options: Iterable[str | int]) -> Reader:
    """One of the given strings or integers."""
    allowed = tuple(options)

    def read(value: Any) -> Any:
        if type(value) not in (int, str) or value not in allowed:
            raise ValueError("must be one of " + ", ".join(map(str, allowed)))
        return value

    return read


def flag(value: Any) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise ValueError("must be true or false")
    return value


def name(value: Any) -> str:
    """The name of a node or value: 1 to 200 of the letters, digits, ``_``, ``.`` and ``-``."""
    if not isinstance(value, str) or NAME_PATTERN.fullmatch(value) is None:
        raise ValueError("must be a name of letters, digits, '_', '.' and '-'")
    return value


def optional_name(value: Any) -> str | None:
    """A name, or null."""
    return None if value is None else name(value)


def names(low: int, high: int) -> Reader:
    """A list of ``low`` to ``high`` names."""

    def read(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not low <= len(value) <= high:
            raise ValueError(f"must be a list of {low} to {high} names")
        return tuple(name(item) for item in value)

    return read


@dataclass(frozen=True)
class Activation:
    """A function of one number, applied to every element.

    ``relu``: max(x, 0). ``hardtanh``: min(max(x, low), high). ``prelu``: x where x >= 0, else
    slope[c] * x with one slope per channel, kept as a tensor. ``low`` and ``high`` belong to
    hardtanh alone.
    """

    kind: Literal["relu", "hardtanh", "prelu"]
    low: float = -1.0
    high: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """Return ``{"kind": ...}``, with both bounds for hardtanh."""
        if self.kind == "hardtanh":
            return {"kind": self.kind, "low": float(self.low), "high": float(self.high)}
        return {"kind": self.kind}


_read_kind: Final = choice(("relu", "hardtanh", "prelu"))
_read_bound: Final = number()


def activation(value: Any) -> Activation:
    """An `Activation`, or its JSON object."""
    if isinstance(value, Activation):
        value = value.to_json()
    if not isinstance(value, dict) or "kind" not in value:
        raise ValueError("must be an object with a kind")
    kind = value["kind"]
    try:
        _read_kind(kind)
    except ValueError as error:
        raise ValueError(f"kind {kind!r:.60} {error}") from None
    allowed = {"kind", "low", "high"} if kind == "hardtanh" else {"kind"}
    if set(value) != allowed:
        raise ValueError(f"of kind {kind} must have exactly the members {sorted(allowed)}")
    if kind != "hardtanh":
        return Activation(kind)
    low, high = _read_bound(value["low"]), _read_bound(value["high"])
    if not low < high:
        raise ValueError("must have low below high")
    return Activation(kind, low, high)


def optional_activation(value: Any) -> Activation | None:
    """An `Activation`, or null."""
    return None if value is None else activation(value)
