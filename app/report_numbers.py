"""How the page of a report writes its numbers."""

_MINUS = "\N{MINUS SIGN}"


def percent(share: float, decimals: int = 2) -> str:
    """Return a share in 0..1 as a percentage."""
    return f"{100 * share:.{decimals}f}\N{NO-BREAK SPACE}%"


def points(change: float, decimals: int = 2) -> str:
    """Return a difference of two shares in percentage points, with its sign."""
    text = f"{100 * change:+.{decimals}f}"
    # "-0.00" is no number that anybody wants to read.
    return text.replace("-", _MINUS) if float(text) else f"{0:.{decimals}f}"


def loss_text(loss: float) -> str:
    """Return a relative loss to three significant digits."""
    return f"{loss:.3g}"


def count(number: int) -> str:
    """Return a number of things."""
    return f"{number:,}"


def signed(number: int) -> str:
    """Return a difference of two counts, with its sign."""
    return f"{number:+,}".replace("-", _MINUS) if number else "0"


def megabytes(size: int) -> str:
    """Return a number of bytes in millions."""
    return f"{size / 1e6:.2f} MB"


def milliseconds(duration: float) -> str:
    """Return a duration in ms to three significant digits."""
    return f"{duration:.3g}\N{NO-BREAK SPACE}ms"
