"""Problem documents."""

from typing import Any

from client.wire.model import Wire


class Problem(Wire):
    """An RFC 9457 problem document."""

    type: str = "about:blank"
    title: str = "The request failed"
    status: int | None = None
    detail: str = ""
    field: str | None = None
    remedy: str | None = None
    instance: str | None = None
    errors: tuple[dict[str, Any], ...] | None = None
