"""The methods as their papers have them, and as bitpress has them."""

from collections.abc import Sequence
from typing import Any

from client.commands.options import pairs


def bwnh_as_published(parameters: Sequence[str] = ()) -> dict[str, Any]:
    """Return BWNH without anything of ours; ``parameters`` (``key=value``) count before all."""
    return {
        "name": "bwnh",
        "sweeps": 20,
        "target": "full_precision",
        "scale": True,
        "ridge": 0.0,
        **pairs(parameters),
    }
