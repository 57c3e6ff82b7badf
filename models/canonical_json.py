"""JSON with one spelling per value, and a reader that accepts nothing doubtful.

Equal artifacts must be equal files, so keys are sorted, separators are bare, characters beyond
ASCII are escaped, and floats are written in the shortest form that reads back as the same number.
"""

import json
import math
from typing import Any, NoReturn


def dump(value: Any) -> str:
    """Return the canonical JSON text of ``value``.

    Raises:
        ValueError: ``value`` holds NaN, infinity, or something that is not JSON.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except TypeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def load(text: str) -> Any:
    """Parse JSON strictly.

    Raises:
        ValueError: not JSON, a key given twice, NaN or infinity, half of a surrogate pair, or
            nested too deeply.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
        # A lone surrogate can be escaped in JSON but never be sent on as UTF-8.
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number here")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is out of range")
    return value
