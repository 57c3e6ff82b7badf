"""The answer to a network that comes to infinite or undefined numbers on the calibration images."""

from store.errors import InvalidCheckpoint


def not_finite(what: str) -> InvalidCheckpoint:
    """Return the error that says so of ``what``, a plural."""
    return InvalidCheckpoint(
        f"{what} on the calibration images are too large or not finite.",
        field="spec.input",
        remedy="Give the mean, std and value range that the network was trained with.",
    )
