"""Classifying images."""

from collections.abc import Sequence
from functools import partial

from client.answers import parsed
from client.errors import UnexpectedAnswer
from client.exchange import Flow, Part, Request
from client.session import Session
from client.types import Predictions


def predict(
    session: Session,
    model: str,
    images: Sequence[tuple[str, bytes]],
    version: int | str | None,
    top_k: int | None,
) -> Flow[Predictions]:
    """Classify encoded images in one request; it changes nothing, and so may be sent again."""
    fields = {"model": model, "version": version, "top_k": top_k}
    request = Request(
        "POST",
        "/predict",
        form={name: str(value) for name, value in fields.items() if value is not None},
        parts=[Part("images", name, partial(bytes, data)) for name, data in images],
        safe_to_repeat=True,
    )
    found = parsed(Predictions, (yield from session.answer(request)))
    if len(found.predictions) != len(images):
        raise UnexpectedAnswer(
            f"{len(images)} images were sent, and {len(found.predictions)} answers came"
        )
    return found
